"""The first words of client and host, and why a host is not the one that is wanted."""

from __future__ import annotations

import dataclasses
import hmac
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..cache.plain_files import open_plain, read_plain
from ..config import APP, create_private, data_folder, keep_seconds, load_settings
from ..models.paths import real_path
from .environment import that_matters
from .place import HostUnavailable

if TYPE_CHECKING:
    from .place import Place

PROTOCOL: Final = 1

_PACKAGE: Final = Path(__file__).parent.parent
# Packages whose version changes what is rendered, computed or fetched, as installers name them.
_INSTALLED: Final = frozenset(
    {
        "huggingface_hub",
        "jinja2",
        "llguidance",
        "llm_mlx_promptcache",
        "mlx",
        "mlx_cpu",
        "mlx_lm",
        "mlx_metal",
        "numpy",
        "safetensors",
        "tokenizers",
        "transformers",
    }
)
# Settings that a host reads once and for all. Clients read the others themselves.
_SETTINGS: Final = ("memory", "disk", "max_days", "ahead")
_SALT: Final = 32  # bytes
_DIGEST: Final = 32  # hexadecimal digits
_LARGEST_TOKEN: Final = 4096  # bytes
_SHOWN: Final = 5  # names of differences


@dataclasses.dataclass(frozen=True, slots=True)
class Build:
    """The parts of a process. `digest` is of our own files and the versions of all packages."""

    package: str
    mlx: str
    mlx_lm: str
    python: str
    prefix: str
    digest: str


def build() -> Build:
    """The build that a process started now would be: upgrading a package changes it."""
    installed = sorted(_installed())
    versions = dict(installed)
    told = [str(_PACKAGE), *sorted(_files(str(_PACKAGE))), *map(" ".join, installed)]
    python = ".".join(map(str, sys.version_info[:3]))
    digest = sha256("\n".join(told).encode("utf-8", "surrogateescape")).hexdigest()
    package, mlx, mlx_lm = (versions.get(n, "") for n in ("llm_mlx_promptcache", "mlx", "mlx_lm"))
    return Build(package, mlx, mlx_lm, python, sys.prefix, digest)


@cache
def build_that_runs() -> Build:
    """The build that this process is: taken when this file is first imported."""
    return build()


def hello(place: Place) -> dict[str, Any]:
    """The description of this process, for a client's `hello` and for a host to compare it with.

    A host takes it once, at its start: later its settings may differ. HostUnavailable where the
    place's salt can't be had or the package was replaced under this process, since no host started
    now would understand it; ValueError for settings that can't be read.
    """
    check_build()
    return unchecked_hello(place)


def unchecked_hello(place: Place) -> dict[str, Any]:
    """The same for who calls `check_build` before it believes or starts a host.

    That looks at all of our files, which a client has time for while the host computes.
    """
    settings = load_settings().model_dump(mode="json", include=set(_SETTINGS))
    with _folder_that_is_there():
        made_of = dataclasses.asdict(build_that_runs())
        environment = _environment(_salt(place.salt))
    return {
        **bare_hello(),
        "build": made_of,
        "settings": {name: settings.get(name) for name in _SETTINGS},
        "environment": environment,
        "keep": keep_seconds(),
    }


def check_build() -> None:
    """HostUnavailable if the package was replaced under this process."""
    with _folder_that_is_there():
        if build() != build_that_runs():
            raise HostUnavailable(
                "packages were installed or changed since this process began; start it anew"
            )


@contextmanager
def _folder_that_is_there() -> Iterator[None]:
    try:
        yield
    except OSError as error:  # relative paths in a folder that is gone
        raise HostUnavailable(f"the folder that this runs in is gone ({error.strerror})") from error


def bare_hello() -> dict[str, Any]:
    """The hello of a client that only asks about the host or ends it, whatever both are."""
    return {"protocol": PROTOCOL}


def difference(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """The reason, one line, why a host (`mine`) can't answer a client (`theirs`), or "".

    `theirs` is untrusted. A bare hello differs in nothing but the protocol.
    """
    if theirs.get("protocol") != mine["protocol"]:
        return f"it speaks protocol {mine['protocol']}, and not {shown(theirs.get('protocol'))}"
    if set(theirs) == set(bare_hello()):
        return ""
    parts = {name: _strings(theirs.get(name)) for name in ("build", "environment")}
    return (
        _of_builds(mine["build"], parts["build"])
        or _of_names("its settings are others", mine["settings"], theirs.get("settings"))
        or _of_names("its environment is another", mine["environment"], parts["environment"])
    )


def _of_builds(mine: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    for name in (field.name for field in dataclasses.fields(Build)):
        if mine[name] != theirs.get(name):
            if name == "digest":
                return "its packages' files have changed since it was started"
            words = {"package": APP, "mlx_lm": "mlx-lm", "prefix": "Python in"}.get(name, name)
            return f"it runs {words} {mine[name]}, and not {shown(theirs.get(name))}"
    return ""


def _of_names(words: str, mine: Mapping[str, Any], theirs: Any) -> str:
    theirs = theirs if isinstance(theirs, Mapping) else {}
    others = sorted(n for n in mine.keys() | theirs.keys() if mine.get(n) != theirs.get(n))
    told = ", ".join(map(shown, others[:_SHOWN])) + (", ..." if len(others) > _SHOWN else "")
    return f"{words} ({told})" if others else ""


def _strings(data: Any) -> dict[str, str]:
    """The strings in what should be an object of strings."""
    items = data.items() if isinstance(data, Mapping) else ()
    return {name: value for name, value in items if isinstance(value, str)}


def shown(value: Any) -> str:
    """A foreign value in one short line."""
    return "".join(c if c.isprintable() else "?" for c in str(value)[:80])


def _environment(salt: bytes) -> dict[str, str]:
    """Digests of all that answers depend on: nobody can learn or test a token by them."""
    hub = _hub_folder()
    folders = {"data folder": data_folder(), "hub folder": hub}
    token = _hub_token(Path(os.environ.get("HF_TOKEN_PATH") or hub / "token"))
    found = {name: os.fsencode(value) for name, value in that_matters(os.environ).items()}
    found |= {name: os.fsencode(real_path(path)) for name, path in folders.items()}
    if token:
        found["hub token"] = token
    return {
        name: hmac.new(salt, os.fsencode(name) + b"\0" + value, sha256).hexdigest()[:_DIGEST]
        for name, value in found.items()
    }


def _hub_folder() -> Path:
    """The folder where the hub's client keeps its files and the login token."""
    said = os.environ.get("HF_HOME")
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    with suppress(RuntimeError):  # a home that nobody has
        return Path(said or Path(caches) / "huggingface").expanduser()
    return Path(said or caches)


def _hub_token(path: Path) -> bytes:
    """The token of the hub's logged-in user; empty where none can be read."""
    with suppress(OSError, ValueError, RuntimeError), open_plain(path.expanduser()) as file:
        return file.read(_LARGEST_TOKEN).strip()
    return b""


def _salt(path: Path) -> bytes:
    """The salt of a place, made once; HostUnavailable."""
    try:
        try:
            salt = read_plain(path, _SALT)
        except FileNotFoundError:
            _make_salt(path)
            salt = read_plain(path, _SALT)
    except OSError as error:
        raise HostUnavailable(f"{path} can't be read or made ({error.strerror})") from error
    except ValueError:  # too long, or no file at all
        salt = b""
    if len(salt) != _SALT:
        raise HostUnavailable(f"{path} is damaged; remove it")
    return salt


def _make_salt(path: Path) -> None:
    """Put a whole salt there at once; if several try, the first one's stays."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = create_private(temporary)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_SALT))
        with suppress(FileExistsError):
            path.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)


def _files(folder: str) -> Iterator[str]:
    """Our own files in a folder, in any order, each with its size and time of change."""
    try:
        entries = os.scandir(folder)
    except OSError:  # an upgrade is under way
        return
    with entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name != "__pycache__":
                    yield from _files(entry.path)
            elif entry.name.endswith(".py"):
                with suppress(FileNotFoundError):
                    found = entry.stat()
                    yield f"{entry.path} {found.st_size} {found.st_mtime_ns}"


def _installed() -> set[tuple[str, str]]:
    """The installed versions of our dependencies: name and version, from the names of folders.

    importlib.metadata reads a file of each, which takes five times as long.
    """
    found = set()
    for folder in set(sys.path) - {"", _working_folder()}:  # where a client runs, a host does not
        with suppress(OSError):  # an archive, or none
            for name in os.listdir(folder):  # noqa: PTH208 - names are enough
                if name.endswith((".dist-info", ".egg-info")):
                    package, _, version = name.rpartition(".")[0].partition("-")
                    if package.lower() in _INSTALLED:
                        found.add((package.lower(), version))
    return found


def _working_folder() -> str:
    """The folder that this process runs in; "" where it was removed."""
    with suppress(OSError):
        return str(Path.cwd())
    return ""


with suppress(OSError):  # relative paths in a folder that is gone; `hello` reports that
    build_that_runs()
