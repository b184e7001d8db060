"""Commands about the cache as a whole: its folder, size, limits, health and end."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..config import (
    KEEP,
    MOST_DAYS,
    Settings,
    cache_folder,
    change_settings,
    load_settings,
    parse_keep,
)
from ..engine.pool import DISK_SWITCH, MEMORY, disk_store
from ..host.asking import EndedMeanwhile, asked, has_ended
from ..host.errors import HostStopped
from ..host.place import HostUnavailable, host_place
from .host import seen_by_host
from .shown import json_option, label_of, show_json, show_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..cache.disk.store import DiskStore

_AGE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([mhdw])\s*")
_DAYS = {"m": 1 / 1440, "h": 1 / 24, "d": 1.0, "w": 7.0}
_SHOWN_AGE = 40  # characters of one that is refused
_AUTO = "auto"
_END_SECONDS = 15.0  # for a host that is ending: it writes what it has first
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
    """Print what the cache holds on disk, and in the host's memory, in all and of each model."""
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
    click.echo(
        f"{held['spans']} spans, {held['tokens']} tokens, {format_size(held['bytes'])}"
        f" of at most {format_size(held['budget'])} in {cache_folder()}"
    )
    if memory is not None and (found := memory.get("memory")):
        click.echo(
            f"{found['spans']} spans, {found['tokens']} tokens, {format_size(found['bytes'])}"
            f" of at most {format_size(found['budget'])} in the memory of process {memory['pid']}"
        )
    if models:
        show_table(("model", "spans", "size", "in memory", "of which"), [m.row() for m in models])


class _ModelStats(NamedTuple):
    """What is kept of a model; `superseded_bytes` of it can be opened by nobody any more."""

    model: str
    spans: int
    bytes: int
    superseded_bytes: int
    memory_bytes: int

    def row(self) -> tuple[str, ...]:
        from ..cache.sizes import format_size

        # Since mlx or the weights changed: it is evicted first.
        gone = self.superseded_bytes
        told = f"{format_size(gone)} superseded" if gone else ""
        size, memory = format_size(self.bytes), format_size(self.memory_bytes)
        return self.model or "unnamed", str(self.spans), size, memory, told


def _models(store: DiskStore, memory: Mapping[str, Any] | None) -> list[_ModelStats]:
    """The models of which something is on the disk or in the host's memory."""
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
@click.option("--fix", is_flag=True, help="Remove what is damaged and what nobody needs.")
@json_option
def check(*, fix: bool, as_json: bool) -> None:
    """Read and verify all that the cache holds on disk; status 1 where something is wrong.

    With --fix, where something is wrong still: it is looked at once more.
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
    if left and not fix:
        raise click.ClickException(f"{len(left)} found; llm mlx-cached check --fix removes them")
    if left:
        raise click.ClickException(
            f"fixed {fixed}; {len(left)} left: what can't be read just now stays; check again later"
        )
    if not as_json:
        click.echo(f"fixed {fixed}" if found else "all is well")


@click.command()
@click.option("--model", help="Only of this model, as stats shows it, or a name.")
@click.option("--older-than", metavar="AGE", help="Only what was not used for so long: 12h, 7d.")
@json_option
def clear(*, model: str | None, older_than: str | None, as_json: bool) -> None:
    """Remove what the cache holds on disk and in the host's memory.

    What the host is just answering is not kept either. Status 1 where the host does not answer.
    """
    from ..cache.sizes import format_size

    days = None if older_than is None else _days("--older-than", older_than)
    store = disk_store()
    cleared = _Cleared(0, 0, "")
    named = model
    if model is not None:
        cleared, memory = _asked_memory()
        named = _stored(store, memory, model)
    if not cleared.why:
        cleared = _cleared_by_host({"ask": "clear", "model": named, "days": days})
    freed = cleared.disk + store.clear(model=named, days=days)
    if model is None and days is None:
        # Digests of the models' files: no conversation, but ours.
        with suppress(OSError):
            (cache_folder() / "digests.json").unlink()
    if as_json:
        show_json({"freed": freed, "freed_memory": cleared.memory})
    else:
        beside = f", and {format_size(cleared.memory)} of memory" if cleared.memory else ""
        click.echo(f"freed {format_size(freed)}{beside}")
    if cleared.why:
        raise click.ClickException(
            f"{cleared.why}; what it has in memory is not cleared, and may be written to the disk"
            " again: llm mlx-cached stop, then clear once more"
        )


class _Cleared(NamedTuple):
    """The bytes that the host freed, and why it did not clear, where it did not."""

    memory: int
    disk: int
    why: str


def _asked_memory() -> tuple[_Cleared, Mapping[str, Any]]:
    """What the host holds, by model; why that is not known, where it is not."""
    try:
        return _Cleared(0, 0, ""), asked({"ask": "stats"}) or {}
    except (HostUnavailable, HostStopped) as error:
        return _Cleared(0, 0, str(error)), {}


def _cleared_by_host(ask: Mapping[str, Any]) -> _Cleared:
    """Have the host clear its memory and the disk; one that is just ending is waited for."""
    try:
        told = asked(ask) or {}
        return _Cleared(int(told.get("memory", 0)), int(told.get("disk", 0)), "")
    except (EndedMeanwhile, HostStopped) as error:
        ended = has_ended(host_place(), _END_SECONDS)
        return _Cleared(0, 0, "" if ended else str(error))
    except HostUnavailable as error:
        return _Cleared(0, 0, str(error))


@click.command()
@click.option("--memory", metavar="SIZE", help="Most that a process holds in memory: 8GB.")
@click.option("--disk", metavar="SIZE", help="Most that the folder holds on disk: 40GB.")
@click.option("--max-age", metavar="AGE", help="What is unused for so long leaves the disk: 30d.")
@click.option("--keep", metavar="TIME", help="How long an idle host stays: 30m, 0 or forever.")
@click.option("--ahead", type=click.Choice(list(_AHEAD)), help="Work while the user reads.")
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


def _stored(store: DiskStore, memory: Mapping[str, Any], model: str) -> str:
    """What the cache calls a model of this name, or how a namespace starts; ValueError."""
    from ..cache.disk.listing import ID_LENGTH

    inside = memory.get("models", [])
    labels = {label for label, _, _ in store.by_model()} | {one["model"] for one in inside}
    for name in (label_of(model), model):
        if name in labels:
            return name
    namespaces = {span.namespace for span in store.listing().spans}
    namespaces |= {name for one in inside for name in one["namespaces"]}
    if len(model) >= ID_LENGTH and any(name.startswith(model) for name in namespaces):
        return model
    raise ValueError(
        f"nothing is stored of {model!r}; llm mlx-cached stats lists the models that have something"
    )


def _limits(found: Settings) -> list[tuple[str, str]]:
    age = "none" if found.max_days is None else f"{found.max_days:g} days"
    disk = "auto (20 GB, or a tenth of the free space)" if found.disk is None else str(found.disk)
    memory = f"auto ({MEMORY})" if found.memory is None else str(found.memory)
    keep = f"auto ({KEEP})" if found.keep is None else found.keep
    ahead = {None: "auto (on)", True: "on", False: "off"}[found.ahead]
    limits = [("memory", memory), ("disk", disk), ("max-age", age), ("keep", keep)]
    return [*limits, ("ahead", ahead)]


def _size(option: str, size: str) -> str | None:
    """A size as it was given, once it is known to be one; ValueError names the option."""
    from ..cache.sizes import parse_size

    if size == _AUTO:
        return None
    parse_size(size, option)
    return size


def _keep(said: str) -> str | None:
    """How long a host stays as it was given, once it is known to be that; ValueError."""
    if said == _AUTO:
        return None
    parse_keep(said, "--keep")
    return said


def _most_days(age: str) -> float | None:
    days = None if age == _AUTO else _days("--max-age", age)
    if days == 0:
        raise ValueError(
            f"--max-age is {age!r}, which keeps nothing; give an age such as 30d,"
            f" or set {DISK_SWITCH}=0 to keep nothing on disk"
        )
    return days


def _days(option: str, age: str) -> float:
    match = _AGE.fullmatch(age)
    if match is None:
        raise ValueError(f"{option} is {age!r}; give an age such as 12h, 7d or 4w")
    number, unit = match.groups()
    days = float(number) * _DAYS[unit]
    if days >= MOST_DAYS:
        raise ValueError(f"{option} is {age[:_SHOWN_AGE]!r}; give less than {MOST_DAYS:,} days")
    return days
