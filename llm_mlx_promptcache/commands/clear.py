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
from ..host.served import served_names
from ..models.errors import ModelLoadError
from ..models.references import SERVED
from ..models.served import model_behind
from .ages import parse_age
from .cache import WRITABLE
from .shown import counted, json_option, show_json, stored_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..cache.disk.store import DiskStore

_END_SECONDS = 15.0  # for a host that is ending: it first writes its cache
_SHOWN = 5  # ids of pinned spans


@click.command()
@click.option("--model", help="Only of this model, as stats shows it, or by name.")
@click.option("--older-than", metavar="AGE", help="Only entries unused this long: 12h, 7d.")
@click.option("-y", "--yes", is_flag=True, help="Remove pinned entries too, without asking.")
@json_option
def clear(*, model: str | None, older_than: str | None, yes: bool, as_json: bool) -> None:
    """Remove the cache's contents on disk and in the host's memory.

    An answer in progress is not kept either. A model that is served over several machines is
    cleared on all of them. Status 1 if a host does not answer, or a disk is not cleared. If
    entries are pinned it asks first; --older-than leaves them.
    """
    days = None if older_than is None else parse_age(older_than, "--older-than")
    store, hosts = disk_store(), [_Host(), *map(_Host, served_names())]
    named = None if model is None else _stored(store, _told_by(hosts, {"ask": "stats"}), model)
    if days is None and not yes:
        _ask_first(_pinned(store, _told_by(hosts, {"ask": "tree"}), named))
    told = _told_by(hosts, {"ask": "clear", "model": named, "days": days})
    freed = sum(int(one.get("disk", 0)) for one in told) + store.clear(model=named, days=days)
    if model is None and days is None:
        # Digests of the models' files: no conversation, but ours.
        with suppress(OSError):
            (cache_folder() / "digests.json").unlink()
    _tell(freed, sum(int(one.get("memory", 0)) for one in told), as_json=as_json)
    if store.off and store.folder.exists():
        raise click.ClickException(f"the disk is not cleared; {WRITABLE}")
    for name in (host.served for host in hosts if host.served and not (host.is_there or host.why)):
        if named in (None, _model_of(name)):
            elsewhere = "what it has on other machines stays; clear it there"
            click.echo(f"{name} is not served now: {elsewhere}", err=True)
    if left := [host.not_cleared for host in hosts if host.not_cleared]:
        raise click.ClickException("\n".join(left))


class _Host:
    """A running host: the user's own, or that of a `served` model.

    If it does not answer, `why` says so, and it is left alone. One that is just ending is waited
    for.
    """

    def __init__(self, served: str = "") -> None:
        self.served = served
        self.is_there = False
        self._left: list[str] = []  # machines whose disks still have something
        self.why = ""

    def asked(self, ask: Mapping[str, Any]) -> Mapping[str, Any]:
        """The host's result; empty if there is none, or none that answers."""
        if self.why:
            return {}
        told = None
        try:
            told = asked(ask, self.served)
        except (EndedMeanwhile, HostStopped) as error:
            ended = has_ended(host_place(self.served), _END_SECONDS)
            self.why = "" if ended and not self.served else str(error)
        except HostUnavailable as error:
            self.why = str(error)
        except (RuntimeError, ValueError) as error:
            if not self.served:
                raise
            self.why = str(error)
        self.is_there = told is not None
        self._left += map(str, (told or {}).get("left", []))
        return told or {}

    @property
    def not_cleared(self) -> str:
        """The part of it that is not cleared, and what to do; "" where all is."""
        stop = "llm mlx-cached stop"
        if self.why and not self.served:
            return (
                f"{self.why}; what it has in memory is not cleared, and may be written to the disk"
                f" again: {stop}, then clear once more"
            )
        if self.why:
            return (
                f"{self.served} is served over several machines, and is not cleared there"
                f" ({self.why}): {stop} {quote(self.served)}, then clear here and on each of them"
            )
        if self._left:
            return (
                f"{', '.join(self._left)} still has something of {self.served} on its disk, whose"
                " index others use; clear once more"
            )
        return ""


def _told_by(hosts: Iterable[_Host], ask: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The results of all hosts that there are, and that answer."""
    return [host.asked(ask) for host in hosts]


def _model_of(served: str) -> str:
    """The model that is served under a name, as the cache knows it."""
    with suppress(ModelLoadError):
        return model_behind(f"{SERVED}{served}")
    return ""


def _tell(freed: int, memory: int, *, as_json: bool) -> None:
    """Show the bytes freed on the disk, and in the host's memory."""
    from ..cache.sizes import format_size

    if as_json:
        show_json({"freed": freed, "freed_memory": memory})
    else:
        beside = f", and {format_size(memory)} of memory" if memory else ""
        click.echo(f"freed {format_size(freed)}{beside}")


def _stored(store: DiskStore, memory: Iterable[Mapping[str, Any]], model: str) -> str:
    """The cache's name for a model, or the beginning of a namespace; ValueError."""
    inside = [one for told in memory for one in told.get("models", [])]
    labels = {label for label, _, _ in store.by_model()} | {one["model"] for one in inside}
    namespaces = {span.namespace for span in store.listing().spans}
    namespaces |= {name for one in inside for name in one["namespaces"]}
    return stored_name(model, labels, namespaces)


def _pinned(store: DiskStore, memory: Iterable[Mapping[str, Any]], named: str | None) -> list[str]:
    """The ids of spans pinned on the disk or in memory alone, of a model or of all."""
    from ..cache.disk.listing import ID_LENGTH

    found = [(s.model, s.namespace, s.file_id) for s in store.listing().spans if s.pinned]
    alone = [one for told in memory for one in told.get("alone", []) if one["pinned"]]
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
