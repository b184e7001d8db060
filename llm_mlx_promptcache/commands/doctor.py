"""`llm mlx-cached doctor`: what this package promises, looked at on this machine."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from ..config import cache_folder, data_folder
from ..engine.pool import disk_store
from ..models.errors import ModelLoadError, one_line
from ..models.names import is_path, resolve
from ..models.references import divided, folder_of
from .doctor_diagnosis import Diagnosis, Health
from .doctor_disk import read_speed
from .doctor_folder import NoFolder, OwnFolder
from .doctor_host import HostSeen, host_seen
from .doctor_machine import machine_diagnoses
from .doctor_model import REPORT, model_diagnoses
from .doctor_names import Names, folder_name
from .doctor_places import disk_diagnoses, folder_diagnoses
from .ending import EndedBySignal, Ending
from .shown import counted, json_option, model_option, show_json, show_line, show_table

_PACKAGE: Final = logging.getLogger(__name__.partition(".")[0])
_COLUMNS: Final = ("part", "what", "found", "health", "what to do")


@click.command()
@model_option
@json_option
def doctor(*, model: str, as_json: bool) -> None:
    """Check folders, disk, index, host and a model on this machine; status 1 if one is wrong.

    With the model it measures warm beside cold, restored beside computed, together beside alone,
    and speeds: in about a minute, in a cache of its own. Paste the table into an issue: it has no
    prompt and no file name of yours.
    """
    began = time.monotonic()
    try:
        with Ending() as ending:
            lines = _lines(model, ending)
    except EndedBySignal as ended:
        click.echo("doctor: stopped; what it made is removed", err=True)
        sys.exit(ended.status)
    _show(lines, time.monotonic() - began, as_json=as_json)
    if any(line.health is Health.WRONG for line in lines):
        sys.exit(1)


def _lines(model: str, ending: Ending) -> list[Diagnosis]:
    """All lines as they may be shown; what was made on the way is gone."""
    lines, names, own = [], _names(model), OwnFolder()
    looked, log = _looked_at(model, own), _PublicLog(names)
    _PACKAGE.addHandler(log)
    try:
        try:
            for line in looked:
                ending.check()
                lines.append(_public(line, names))
        finally:
            ending.hold()
    finally:
        try:
            looked.close()  # whatever is raised holds it, and what it writes would come behind
        finally:
            own.remove()
            _PACKAGE.removeHandler(log)
    return lines


class _PublicLog(logging.Handler):
    """Says on stderr what the package warns of, likewise without anything of the user's."""

    def __init__(self, names: Names) -> None:
        super().__init__(logging.WARNING)
        self._names = names

    def emit(self, record: logging.LogRecord) -> None:
        """Say one."""
        _say(self._names.public(record.getMessage()))


def _looked_at(model: str, own: OwnFolder) -> Generator[Diagnosis]:
    """Each line, with whatever it names."""
    _say("looking at the machine, the folders and the disk")
    yield from _told("machine", machine_diagnoses())
    folders = list(_told("folders", _folders()))
    yield from folders
    if any(line.health is Health.WRONG for line in folders):
        # Who opens the cache makes its folder its owner's alone: it is to be seen as it is.
        said = "left out until the folders are right"
        yield Diagnosis("disk", "index", said, Health.NOTE, "then run this again")
    else:
        yield from _told("disk", _disk())
    host = _host()
    yield from host.lines
    yield from _told("model", _model(model, host.held, own))


def _told(part: str, lines: Iterable[Diagnosis]) -> Iterator[Diagnosis]:
    """Lines of a part; what raises while it is looked at is one of them, and others follow."""
    try:
        yield from lines
    except Exception as error:
        yield _raised(part, error)


def _raised(part: str, error: Exception) -> Diagnosis:
    if isinstance(error, BrokenPipeError):  # nobody reads what is told
        raise error
    ours = isinstance(error, OSError | ValueError)
    said = f"it can't be looked at: {one_line(error, 400)}"
    todo = "mend that, then run this again" if ours else REPORT
    return Diagnosis(part, "all of it", said, Health.WRONG, todo)


def _folders() -> Iterator[Diagnosis]:
    yield from folder_diagnoses(cache_folder(), data_folder())


def _disk() -> Iterator[Diagnosis]:
    yield from disk_diagnoses(disk_store())


def _host() -> HostSeen:
    try:
        return host_seen()
    except Exception as error:  # what another version answers may be anything
        return HostSeen((_raised("host", error),))


def _model(model: str, held: int, own: OwnFolder) -> Iterator[Diagnosis]:
    try:
        reference = resolve(model).reference
    except ModelLoadError:  # it names what the user calls models
        said = "no model here has that name, alias, folder or adapter"
        yield Diagnosis("model", "model", said, Health.WRONG, "llm mlx-cached models")
        return
    try:
        folder = own.make()
    except NoFolder as error:
        said = f"no folder can be made beside the cache: {error}"
        yield Diagnosis("disk", "reads", said, Health.WRONG, "make room, then run this again")
        return
    yield read_speed(folder)
    _say("loading and running the model, for about a minute")
    yield from model_diagnoses(reference, folder / "cache", held)


def _public(line: Diagnosis, names: Names) -> Diagnosis:
    """The same without anything that is the user's own."""
    found, todo = names.public(line.found), names.public(line.todo)
    return replace(line, found=found, todo=todo, figures=_public_figures(line.figures, names))


def _names(model: str) -> Names:
    """The folders that may be named, and the model's, which has a name of the user's."""
    folders: list[Path] = []
    with suppress(ValueError):  # a line tells it
        folders = [cache_folder(), data_folder()]
    return Names([*((folder, folder_name(folder)) for folder in folders), *_model_names(model)])


def _model_names(model: str) -> Iterator[tuple[str, str]]:
    """The folders of a model and of its adapter, as the user wrote them and as they are."""
    try:
        reference = resolve(model).reference
    except ValueError:  # its line names none
        return
    spellings = zip(divided(model), divided(reference), strict=True)
    for part in (part for both in spellings for part in both):
        if (folder := folder_of(part)) is not None:
            yield str(folder), "the model's folder"
        if is_path(part):  # a bare word may be one of ours
            yield part, "the model's folder"


def _public_figures(figures: Mapping[str, Any], names: Names) -> dict[str, Any]:
    return {
        name: names.public(one)
        if isinstance(one, str)
        else _public_figures(one, names)
        if isinstance(one, Mapping)
        else one
        for name, one in figures.items()
    }


def _show(lines: Sequence[Diagnosis], seconds: float, *, as_json: bool) -> None:
    counts = Counter(line.health for line in lines)
    wrong, notes = counts[Health.WRONG], counts[Health.NOTE]
    if as_json:
        told = [
            {
                "part": line.part,
                "what": line.what,
                "found": line.found,
                "health": line.health.value,
                "todo": line.todo,
                "figures": line.figures,
            }
            for line in lines
        ]
        show_json({"wrong": wrong, "worth_knowing": notes, "seconds": seconds, "lines": told})
        return
    rows = [(line.part, line.what, line.found, line.health.value, line.todo) for line in lines]
    show_table(_COLUMNS, rows)
    show_line(
        f"{counted(len(lines), 'line')} in {seconds:.0f} s: {wrong} wrong, {notes} worth knowing"
    )


def _say(text: str) -> None:
    click.echo(f"doctor: {text}", err=True)
