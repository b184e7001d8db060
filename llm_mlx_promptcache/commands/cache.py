"""Commands about the cache as a whole: its folder, size, limits, health and end."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from ..config import (
    KEEP,
    Settings,
    cache_folder,
    change_settings,
    load_settings,
    parse_keep,
)
from ..engine.pool import DISK_SWITCH, MEMORY, disk_store
from .shown import json_option, label_of, show_json, show_table

if TYPE_CHECKING:
    from ..cache.disk.store import DiskStore

_AGE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([mhdw])\s*")
_DAYS = {"m": 1 / 1440, "h": 1 / 24, "d": 1.0, "w": 7.0}
_AUTO = "auto"


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
    """Print what the cache on disk holds, in all and of each model."""
    from ..cache.sizes import format_size

    store = disk_store()
    held = store.stats()
    models = store.by_model()
    gone = dict.fromkeys((m for m, _, _ in models), 0)
    for m, _, size in store.superseded():
        gone[m] = gone.get(m, 0) + size
    if as_json:
        del held["written"]  # by this process, which writes nothing
        named = [
            {"model": m, "spans": spans, "bytes": size, "superseded_bytes": gone[m]}
            for m, spans, size in models
        ]
        show_json({**held, "folder": str(cache_folder()), "models": named})
        return
    click.echo(
        f"{held['spans']} spans, {held['tokens']} tokens, {format_size(held['bytes'])}"
        f" of at most {format_size(held['budget'])} in {cache_folder()}"
    )
    # What nobody can open any more, since mlx or the weights changed: it is evicted first.
    told = {m: f"{format_size(size)} superseded" if size else "" for m, size in gone.items()}
    rows = [(m or "unnamed", str(spans), format_size(size), told[m]) for m, spans, size in models]
    if rows:
        show_table(("model", "spans", "size", "of which"), rows)


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
    """Remove what the cache holds on disk."""
    from ..cache.sizes import format_size

    days = None if older_than is None else _days("--older-than", older_than)
    store = disk_store()
    named = None if model is None else _stored(store, model)
    freed = store.clear(model=named, days=days)
    if model is None and days is None:
        # Digests of the models' files: no conversation, but ours.
        with suppress(OSError):
            (cache_folder() / "digests.json").unlink()
    if as_json:
        show_json({"freed": freed})
    else:
        click.echo(f"freed {format_size(freed)}")


@click.command()
@click.option("--memory", metavar="SIZE", help="Most that a process holds in memory: 8GB.")
@click.option("--disk", metavar="SIZE", help="Most that the folder holds on disk: 40GB.")
@click.option("--max-age", metavar="AGE", help="What is unused for so long leaves the disk: 30d.")
@click.option("--keep", metavar="TIME", help="How long an idle host stays: 30m, 0 or forever.")
@json_option
def settings(
    *,
    memory: str | None,
    disk: str | None,
    max_age: str | None,
    keep: str | None,
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
    found = change_settings(lambda old: old.changed(**said)) if said else load_settings()
    if as_json:
        show_json({name: getattr(found, name) for name in ("memory", "disk", "max_days", "keep")})
    else:
        show_table(("limit", "set to"), _limits(found))


def _stored(store: DiskStore, model: str) -> str:
    """What the store calls a model of this name, or how a namespace starts; ValueError."""
    from ..cache.disk.listing import ID_LENGTH

    labels = {label for label, _, _ in store.by_model()}
    for name in (label_of(model), model):
        if name in labels:
            return name
    namespaces = {span.namespace for span in store.listing().spans}
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
    return [("memory", memory), ("disk", disk), ("max-age", age), ("keep", keep)]


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
    return float(number) * _DAYS[unit]
