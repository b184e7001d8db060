"""`llm mlx-cached doctor`: what this package promises, looked at on this machine."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, Final

import click

from ..config import cache_folder, data_folder
from ..engine.pool import disk_store
from ..models.names import resolve
from ..models.references import divided, folder_of
from .doctor_diagnosis import Diagnosis, Health
from .doctor_disk import read_speed
from .doctor_folder import NoFolder, own_folder
from .doctor_host import host_seen
from .doctor_machine import machine_diagnoses
from .doctor_model import model_diagnoses
from .doctor_names import Names, folder_name
from .doctor_places import disk_diagnoses, folder_diagnoses
from .ending import EndedBySignal, Ending
from .shown import counted, json_option, model_option, show_json, show_line, show_table

_COLUMNS: Final = ("part", "what", "found", "health", "what to do")


@click.command()
@model_option
@json_option
def doctor(*, model: str, as_json: bool) -> None:
    """Check folders, disk, index, host and a model on this machine; status 1 where one is wrong.

    With the model it measures warm beside cold, restored beside computed, together beside alone,
    and speeds: in about a minute, in a cache of its own. The table is to be pasted into an issue:
    no prompt and no name of a file of yours is in it.
    """
    began = time.monotonic()
    lines: list[Diagnosis] = []
    names = _names(model)
    try:
        # Closed here, since whatever is raised holds them: their folder would stay until the end.
        with Ending() as ending, closing(_looked_at(model, ending)) as looked:
            lines.extend(_public(line, names) for line in looked)
    except EndedBySignal as ended:
        click.echo("doctor: stopped; nothing of yours was changed", err=True)
        sys.exit(ended.status)
    _show(lines, time.monotonic() - began, as_json=as_json)
    if any(line.health is Health.WRONG for line in lines):
        sys.exit(1)


def _looked_at(model: str, ending: Ending) -> Generator[Diagnosis]:
    """Each line, with whatever it names."""
    _say("looking at the machine, the folders and the disk")
    yield from machine_diagnoses()
    folders = list(folder_diagnoses(cache_folder(), data_folder()))
    yield from folders
    if any(line.health is Health.WRONG for line in folders):
        # Who opens the cache makes its folder its owner's alone: it is to be seen as it is.
        said = "left out until the folders are right"
        yield Diagnosis("disk", "index", said, Health.NOTE, "then run this again")
    else:
        yield from disk_diagnoses(disk_store())
    host = host_seen()
    yield from host.lines
    try:
        reference = resolve(model).reference
    except ValueError as error:
        yield Diagnosis("model", "model", str(error), Health.WRONG, "llm mlx-cached models")
        return
    try:
        with own_folder(ending) as folder:
            yield read_speed(folder)
            _say("loading and running the model, for about a minute")
            yield from model_diagnoses(reference, folder / "cache", host.held)
    except NoFolder as error:
        said = f"no folder can be made beside the cache: {error}"
        yield Diagnosis("disk", "reads", said, Health.WRONG, "make room, then run this again")


def _public(line: Diagnosis, names: Names) -> Diagnosis:
    """The same without anything that is the user's own."""
    found, todo = names.public(line.found), names.public(line.todo)
    return replace(line, found=found, todo=todo, figures=_public_figures(line.figures, names))


def _names(model: str) -> Names:
    """The folders that may be named, and the model's, which has a name of the user's."""
    named = [(folder, folder_name(folder)) for folder in (cache_folder(), data_folder())]
    return Names([*named, *_model_names(model)])


def _model_names(model: str) -> Iterator[tuple[str, str]]:
    """The folders of a model and of its adapter, as the user wrote them and as they are."""
    try:
        reference = resolve(model).reference
    except ValueError:
        yield model, "that model"
        return
    spellings = zip(divided(model), divided(reference), strict=True)
    for part in (part for both in spellings for part in both):
        if folder_of(part) is not None:
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
