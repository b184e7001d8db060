"""`doctor`'s lines about the resident host, which it neither starts nor ends."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

from ..config import KEEP_VARIABLE, keep_seconds
from ..host.asking import EndedMeanwhile, asked
from ..host.errors import HostStopped
from ..host.hello import hello
from ..host.place import HostUnavailable, Place, existing_place
from ..host.start import HostRefused, HostSilent, find
from .doctor_diagnosis import Diagnosis, Health
from .shown import counted

_PART: Final = "host"
_SLOW: Final = 1.0  # seconds for a question that computes nothing
_MOST_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class HostSeen:
    """Lines about a host, and the bytes that MLX holds there."""

    lines: tuple[Diagnosis, ...]
    held: int = 0


def host_seen() -> HostSeen:
    """The host's folder, and what it answers; it is neither started nor ended."""
    try:
        place = existing_place()
    except HostUnavailable as error:
        todo = "llm mlx-cached ps names it; until it is right each prompt loads the model anew"
        return HostSeen((Diagnosis(_PART, "folder", str(error), Health.WRONG, todo),))
    if place is None:
        return HostSeen((_none(),))
    folder = Diagnosis(_PART, "folder", f"{place.folder}, yours alone")
    return _answering(place, folder)


def _answering(place: Place, folder: Diagnosis) -> HostSeen:
    began = time.monotonic()
    try:
        told = asked({"ask": "ps"}, seconds=_MOST_SECONDS)
    except EndedMeanwhile:
        told = None
    except HostSilent as error:
        todo = f"kill {error.pid}" if error.pid else "end that process"
        return HostSeen((folder, Diagnosis(_PART, "answers", str(error), Health.WRONG, todo)))
    except HostRefused as error:
        health, todo = (
            (Health.NOTE, "run this again once fewer ask it")
            if error.busy
            else (Health.WRONG, "llm mlx-cached stop")
        )
        return HostSeen((folder, Diagnosis(_PART, "answers", str(error), health, todo)))
    except (HostUnavailable, HostStopped, ValueError, OSError) as error:
        todo = "llm mlx-cached stop"
        return HostSeen((folder, Diagnosis(_PART, "answers", str(error), Health.WRONG, todo)))
    seconds = time.monotonic() - began
    if told is None:
        return HostSeen((folder, _none()))
    memory = told.get("memory")
    held = memory.get("active", 0) if isinstance(memory, Mapping) else 0
    return HostSeen((folder, _answer(told, seconds), _fits(place)), int(held))


def _none() -> Diagnosis:
    """No host runs; where none ever will, that is worth a line."""
    try:
        off = keep_seconds() == 0
    except ValueError as error:
        todo = "correct it: until then no prompt is answered"
        return Diagnosis(_PART, "runs", str(error), Health.WRONG, todo, {"runs": False})
    if off:
        return _switched_off()
    return Diagnosis(_PART, "runs", "no; the next prompt starts it", figures={"runs": False})


def _switched_off() -> Diagnosis:
    todo = f"hosts are switched off, so each prompt loads the model ({KEEP_VARIABLE}, or keep)"
    return Diagnosis(_PART, "runs", "no", Health.NOTE, todo, {"runs": False})


def _answer(told: Mapping[str, Any], seconds: float) -> Diagnosis:
    """The time of a question that computes nothing, and what answered it."""
    build = told.get("build")
    build = build if isinstance(build, Mapping) else {}
    models = [one for one in told.get("models", ()) if isinstance(one, Mapping)]
    loaded = sum(1 for one in models if one.get("loaded"))
    busy = told.get("busy")
    busy = busy if isinstance(busy, int) else 0
    said = (
        f"version {build.get('package')}, {counted(loaded, 'model')} in memory, answers"
        f" {counted(busy, 'prompt')}, and this question in {seconds * 1e3:.0f} ms"
    )
    figures = {"runs": True, "seconds": seconds, "models": loaded, "busy": busy}
    if seconds < _SLOW:
        return Diagnosis(_PART, "answers", said, figures=figures)
    todo = "the machine is busy, or short of memory: llm mlx-cached stop gives that back"
    return Diagnosis(_PART, "answers", said, Health.NOTE, todo, figures)


def _fits(place: Place) -> Diagnosis:
    """Tell whether it takes this process's prompts: same versions, settings and environment."""
    try:
        channel = find(place, mine=hello(place))
    except HostRefused as error:
        todo = "it is replaced by the next prompt" + (" once it is idle" if error.busy else "")
        return Diagnosis(_PART, "fits", str(error), Health.NOTE, todo, {"fits": False})
    except (HostUnavailable, ValueError) as error:  # settings that can't be read
        return Diagnosis(_PART, "fits", str(error), Health.NOTE, "ask again", {"fits": False})
    if channel is None:
        return Diagnosis(_PART, "fits", "it ended meanwhile")
    with closing(channel):
        said = "the same versions, settings and environment as here"
        return Diagnosis(_PART, "fits", said, figures={"fits": True})
