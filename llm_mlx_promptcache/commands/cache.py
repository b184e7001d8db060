"""Commands about the cache as a whole: its folder, size, limits and health."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..config import (
    HOME_VARIABLE,
    KEEP,
    Settings,
    cache_folder,
    change_settings,
    load_settings,
    parse_keep,
)
from ..engine.pool import DISK_SWITCH, MEMORY, disk_store
from .ages import parse_age
from .host import seen_by_host
from .shown import counted, json_option, show_json, show_line, show_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..cache.disk.store import DiskStore

# The advice about a folder that can't be used, after the failure.
WRITABLE = f"make that folder writable, or set {HOME_VARIABLE} to another one"
_AUTO = "auto"
_AHEAD = {"on": True, "off": False, _AUTO: None}
_SHOWN = ("memory", "disk", "max_days", "keep", "ahead")


@click.command()
@json_option
def path(*, as_json: bool) -> None:
    """Print the folder that holds the cache."""
    folder = str(cache_folder())
    if as_json:
        show_json({"path": folder})
    else:
        click.echo(folder)


@click.command()
@json_option
def stats(*, as_json: bool) -> None:
    """Show the cache's contents on disk and in the host's memory, in total and by model."""
    from ..cache.sizes import format_size

    store = disk_store()
    held = store.stats()
    memory = seen_by_host({"ask": "stats"})
    models = _models(store, memory)
    if as_json:
        del held["written"]  # by this process, which writes nothing
        show_json(
            {
                **held,
                "folder": str(cache_folder()),
                "memory": memory and {"pid": memory["pid"], **(memory.get("memory") or {})},
                "models": [one._asdict() for one in models],
            }
        )
        return
    show_line(f"{_held(held)} in {cache_folder()}")
    if memory is not None and (found := memory.get("memory")):
        show_line(f"{_held(found)} in the memory of process {memory['pid']}")
        active, pool = format_size(found["active"]), format_size(found["pool"])
        show_line(f"MLX holds {active} there, weights included, and {pool} of freed buffers")
    if models:
        show_table(
            ("model", "spans", "size", "in memory", "of the size"), [m.row() for m in models]
        )


def _held(found: Mapping[str, Any]) -> str:
    """The contents of a tier of the cache and its limit, in words."""
    from ..cache.sizes import format_size

    return (
        f"{counted(found['spans'], 'span')}, {counted(found['tokens'], 'token')},"
        f" {format_size(found['bytes'])} of at most {format_size(found['budget'])}"
    )


class _ModelStats(NamedTuple):
    """The entries of a model; `superseded_bytes` of them can't be used any more."""

    model: str
    spans: int
    bytes: int
    superseded_bytes: int
    memory_bytes: int

    def row(self) -> tuple[str, ...]:
        from ..cache.sizes import format_size

        # Made useless by a change of mlx or the weights, and evicted first.
        gone = self.superseded_bytes
        told = f"{format_size(gone)} superseded" if gone else ""
        size, memory = format_size(self.bytes), format_size(self.memory_bytes)
        return self.model or "unnamed", str(self.spans), size, memory, told


def _models(store: DiskStore, memory: Mapping[str, Any] | None) -> list[_ModelStats]:
    """The models that have something on the disk or in the host's memory."""
    gone: dict[str, int] = {}
    for name, _, size in store.superseded():
        gone[name] = gone.get(name, 0) + size
    inside = {one["model"]: int(one["bytes"]) for one in (memory or {}).get("models", [])}
    found = [
        _ModelStats(name, spans, size, gone.get(name, 0), inside.pop(name, 0))
        for name, spans, size in store.by_model()
    ]
    return found + [_ModelStats(name, 0, 0, 0, size) for name, size in inside.items()]


@click.command()
@click.option("--fix", is_flag=True, help="Remove damaged files, and those that nobody needs.")
@json_option
def check(*, fix: bool, as_json: bool) -> None:
    """Read and verify everything that the cache holds on disk; status 1 if anything is wrong.

    With --fix, status 1 if anything is still wrong afterwards: everything is checked again.
    """
    store = disk_store()
    found = store.check(fix=fix)
    left = store.check() if fix and found else found
    fixed = len(found) - len([line for line in found if line in left])
    if as_json:
        show_json({"wrong": found, "fixed": fixed > 0, "left": left})
    else:
        for line in found:
            click.echo(line)
        for line in [line for line in left if line not in found]:
            click.echo(line)
    if store.off:
        raise click.ClickException(f"nothing could be checked; {WRITABLE}")
    if left and not fix:
        raise click.ClickException(f"{len(left)} found; llm mlx-cached check --fix removes them")
    if left:
        raise click.ClickException(
            f"fixed {fixed}; {len(left)} left: files that can't be read just now stay; check again"
            " later"
        )
    if not as_json:
        click.echo(f"fixed {fixed}" if found else "all is well")


@click.command()
@json_option
def compact(*, as_json: bool) -> None:
    """Pack the files that hold a conversation turn by turn into one, which is faster to read.

    A host does the same while nobody asks it, and so does a program that holds a model. Other
    processes may read and write meanwhile, and an interrupted run leaves everything as it was.
    """
    from ..cache.disk.compaction import Compacted

    store = disk_store()
    *_, done = Compacted(), *store.compact()
    if store.off:
        raise click.ClickException(f"nothing could be packed; {WRITABLE}")
    if as_json:
        show_json(done._asdict())
    elif done.packs:
        click.echo(f"{counted(done.files, 'file')} became {done.packs}")
    else:
        click.echo("nothing to pack")


@click.command()
@click.option("--memory", metavar="SIZE", help="Limit in each process's memory, such as 8GB.")
@click.option("--disk", metavar="SIZE", help="Limit on disk, such as 40GB.")
@click.option("--max-age", metavar="AGE", help="Remove entries unused this long from disk: 30d.")
@click.option("--keep", metavar="TIME", help="Time that an idle host stays: 30m, 0 or forever.")
@click.option(
    "--ahead", type=click.Choice(list(_AHEAD)), help="Prefill next turns while the user reads."
)
@json_option
def settings(
    *,
    memory: str | None,
    disk: str | None,
    max_age: str | None,
    keep: str | None,
    ahead: str | None,
    as_json: bool,
) -> None:
    """Show or set the cache's limits, and how long the host stays; "auto" restores a default."""
    said: dict[str, Any] = {}
    if memory is not None:
        said["memory"] = _size("--memory", memory)
    if disk is not None:
        said["disk"] = _size("--disk", disk)
    if max_age is not None:
        said["max_days"] = _most_days(max_age)
    if keep is not None:
        said["keep"] = _keep(keep)
    if ahead is not None:
        said["ahead"] = _AHEAD[ahead]
    found = change_settings(lambda old: old.changed(**said)) if said else load_settings()
    if as_json:
        show_json({name: getattr(found, name) for name in _SHOWN})
    else:
        show_table(("limit", "set to"), _limits(found))


def _limits(found: Settings) -> list[tuple[str, str]]:
    from ..cache.sizes import format_size

    age = "none" if found.max_days is None else f"{found.max_days:g} days"
    disk = "auto (20 GB, or a tenth of the free space)" if found.disk is None else str(found.disk)
    auto = f"auto ({format_size(MEMORY)}, or a quarter of what models leave)"
    memory = auto if found.memory is None else str(found.memory)
    keep = f"auto ({KEEP})" if found.keep is None else found.keep
    ahead = {None: "auto (on)", True: "on", False: "off"}[found.ahead]
    limits = [("memory", memory), ("disk", disk), ("max-age", age), ("keep", keep)]
    return [*limits, ("ahead", ahead)]


def _size(option: str, size: str) -> str | None:
    """The size as it was given, if it is one; ValueError names the option."""
    from ..cache.sizes import parse_size

    if size == _AUTO:
        return None
    parse_size(size, option)
    return size


def _keep(said: str) -> str | None:
    """The host's time to stay as it was given, if it is valid; ValueError."""
    if said == _AUTO:
        return None
    parse_keep(said, "--keep")
    return said


def _most_days(age: str) -> float | None:
    days = None if age == _AUTO else parse_age(age, "--max-age")
    if days == 0:
        raise ValueError(
            f"--max-age is {age!r}, which keeps nothing; give an age such as 30d,"
            f" or set {DISK_SWITCH}=0 to keep nothing on disk"
        )
    return days
