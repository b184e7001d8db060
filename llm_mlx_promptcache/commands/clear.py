"""`llm mlx-cached clear`: remove the cache's contents on the disk and in the host's memory."""

from __future__ import annotations

import sys
from contextlib import suppress
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from ..config import cache_folder
from ..engine.pool import disk_store
from ..host.asking import EndedMeanwhile, asked, has_ended
from ..host.errors import HostStopped
from ..host.place import HostUnavailable, host_place
from ..host.served import is_served, served_names
from .ages import parse_age
from .cache import WRITABLE
from .shown import counted, json_option, show_json, stored_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..cache.disk.store import DiskStore

_END_SECONDS = 15.0  # for a host that is ending: it first writes its cache
_SHOWN = 5  # ids of pinned spans


@click.command()
@click.option("--model", help="Only of this model, as stats shows it, or by name.")
@click.option("--older-than", metavar="AGE", help="Only entries unused this long: 12h, 7d.")
@click.option("-y", "--yes", is_flag=True, help="Pinned entries too, without asking.")
@json_option
def clear(*, model: str | None, older_than: str | None, yes: bool, as_json: bool) -> None:
    """Remove the cache's contents on disk and in the host's memory.

    An answer that the host is just giving is not kept either. Status 1 if the host does not answer,
    or a model is served over several machines: only its end clears their memory. With pinned
    entries it asks first; --older-than leaves them.
    """
    days = None if older_than is None else parse_age(older_than, "--older-than")
    store, host = disk_store(), _Host()
    named = None if model is None else _stored(store, host.asked({"ask": "stats"}), model)
    if days is None and not yes:
        _ask_first(_pinned(store, host.asked({"ask": "tree"}), named))
    told = host.asked({"ask": "clear", "model": named, "days": days})
    freed = int(told.get("disk", 0)) + store.clear(model=named, days=days)
    if model is None and days is None:
        # Digests of the models' files: no conversation, but ours.
        with suppress(OSError):
            (cache_folder() / "digests.json").unlink()
    _tell(freed, int(told.get("memory", 0)), as_json=as_json)
    if store.off and store.folder.exists():
        raise click.ClickException(f"the disk is not cleared; {WRITABLE}")
    if host.why:
        raise click.ClickException(
            f"{host.why}; what it has in memory is not cleared, and may be written to the disk"
            " again: llm mlx-cached stop, then clear once more"
        )
    if running := [name for name in served_names() if is_served(name)]:
        names = " ".join(map(quote, running))
        raise click.ClickException(
            f"{', '.join(running)} is served over several machines, whose memory is not cleared:"
            f" llm mlx-cached stop {names}, then clear once more, here and on each of them"
        )


class _Host:
    """The running host. If it does not answer, `why` says so, and it is left alone.

    A host that is just ending is waited for.
    """

    def __init__(self) -> None:
        self.why = ""

    def asked(self, ask: Mapping[str, Any]) -> Mapping[str, Any]:
        """The host's result; empty if there is none, or none that answers."""
        if self.why:
            return {}
        try:
            return asked(ask) or {}
        except (EndedMeanwhile, HostStopped) as error:
            self.why = "" if has_ended(host_place(), _END_SECONDS) else str(error)
        except HostUnavailable as error:
            self.why = str(error)
        return {}


def _tell(freed: int, memory: int, *, as_json: bool) -> None:
    """Show the bytes freed on the disk, and in the host's memory."""
    from ..cache.sizes import format_size

    if as_json:
        show_json({"freed": freed, "freed_memory": memory})
    else:
        beside = f", and {format_size(memory)} of memory" if memory else ""
        click.echo(f"freed {format_size(freed)}{beside}")


def _stored(store: DiskStore, memory: Mapping[str, Any], model: str) -> str:
    """The cache's name for a model, or the beginning of a namespace; ValueError."""
    inside = memory.get("models", [])
    labels = {label for label, _, _ in store.by_model()} | {one["model"] for one in inside}
    namespaces = {span.namespace for span in store.listing().spans}
    namespaces |= {name for one in inside for name in one["namespaces"]}
    return stored_name(model, labels, namespaces)


def _pinned(store: DiskStore, memory: Mapping[str, Any], named: str | None) -> list[str]:
    """The ids of spans pinned on the disk or in memory alone, of a model or of all."""
    from ..cache.disk.listing import ID_LENGTH

    found = [(s.model, s.namespace, s.file_id) for s in store.listing().spans if s.pinned]
    alone = [one for one in memory.get("alone", []) if one["pinned"]]
    found += [(one["model"], one["namespace"], one["id"]) for one in alone]
    return [
        name[:ID_LENGTH]
        for model, namespace, name in found
        if named is None or model == named or (named and namespace.startswith(named))
    ]


def _ask_first(pinned: list[str]) -> None:
    """Ask the user whether pinned spans go too; ClickException if nobody can be asked."""
    if not pinned:
        return
    ids = ", ".join(pinned[:_SHOWN]) + (", ..." if len(pinned) > _SHOWN else "")
    what = f"{counted(len(pinned), 'pinned span')} ({ids})"
    if not sys.stdin.isatty():
        raise click.ClickException(
            f"nothing was cleared: {what} would go too; give --yes to clear all, or unpin first"
        )
    click.confirm(f"This also removes {what}. Go on?", abort=True, err=True)
