"""`doctor`'s lines about a model: warm beside cold, restored, in batches, and its speeds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..cache.sizes import format_size
from ..config import DEFAULT_MODEL
from ..engine.measurements import (
    Apart,
    BatchBesideAlone,
    Measurement,
    NotFound,
    NotInTime,
    NotKept,
    RestoreBesideMemory,
    Speeds,
    WarmBesideCold,
)
from ..models.errors import ModelLoadError, one_line
from ..models.here import folder_here
from ..models.names import is_path
from ..models.references import divided, served_name
from .doctor_diagnosis import Diagnosis, Health
from .shown import counted

if TYPE_CHECKING:
    from ..models.loading import LoadedModel

_PART: Final = "model"
SECONDS: Final = 40.0  # in which parts may begin, once the model is loaded
REPORT: Final = "please report this table"
_CHUNKS_MATTER: Final = (
    "this model's answers depend on where its prompt is cut, with any cache and without:"
    " the fault is in its code in mlx-lm, so report this table there too"
)


def model_diagnoses(reference: str, folder: Path, held: int) -> Iterator[Diagnosis]:
    """Load a model into this process and measure it; spans go into `folder`, which is empty.

    `held` is what a host has in memory beside it: where both would be too much it is left out.
    """
    if served_name(reference):
        said = "it runs over several machines, and is measured on none"
        yield Diagnosis(_PART, "model", said, Health.NOTE, "-m tells a model of this machine")
        return
    model, _ = divided(reference)
    here = folder_here(reference)
    if here is None and is_path(model):
        todo = "llm mlx-cached default names another model, -m one for once"
        yield Diagnosis(_PART, "model", f"{model} is no folder any more", Health.WRONG, todo)
        return
    if here is None and model != DEFAULT_MODEL:
        todo = "llm mlx-cached download fetches it; -m tells which model"
        yield Diagnosis(_PART, "model", f"{model} is not here", Health.NOTE, todo)
        return
    if here is not None and (short := _short(here, held)) is not None:
        yield short
        return
    began = time.monotonic()
    try:
        loaded = _loaded(reference)
    except ModelLoadError as error:
        yield Diagnosis(_PART, "model", one_line(error, 400), Health.WRONG, "use another model")
        return
    try:
        yield _described(loaded, time.monotonic() - began)
        yield from _measured(loaded, folder)
    except Exception as error:
        # A model's own code, and its configuration, may raise whatever comes first.
        yield Diagnosis(_PART, "runs", one_line(error), Health.WRONG, REPORT)


def _short(here: Path, held: int) -> Diagnosis | None:
    """That this machine's memory does not hold a model twice, or at all."""
    from ..cache.layers.device_memory import device_memory
    from ..models.memory import weights_of

    weights, usable = weights_of(here), device_memory().working_set
    if weights + held <= usable:
        return None
    sizes = f"{format_size(weights)} of weights, and {format_size(usable)} for all"
    told = {"weights": weights, "held": held, "working_set": usable}
    if weights <= usable:
        said = f"left out: {sizes}, of which a host has {format_size(held)}"
        todo = "llm mlx-cached stop, then again"
        return Diagnosis(_PART, "model", said, Health.NOTE, todo, told)
    todo = "use a smaller one, or one of fewer bits"
    return Diagnosis(_PART, "model", f"too large: {sizes}", Health.WRONG, todo, told)


def _loaded(reference: str) -> LoadedModel:
    from ..models.loading import load_model
    from ..models.progress import ProgressLine

    with ProgressLine() as line:
        return load_model(reference, line)


def _described(loaded: LoadedModel, seconds: float) -> Diagnosis:
    """The model's kind and size; a folder's name would be the user's own."""
    from ..models.layers import make_layers, weights_in

    config, weights = loaded.config, weights_in(loaded.model)
    bits = config.get("quantization", config.get("quantization_config")) or {}
    bits = bits.get("bits") if isinstance(bits, dict) else None
    layers = len(make_layers(loaded.model))
    told: dict[str, Any] = {
        "type": config["model_type"],
        "layers": layers,
        "bits": bits if isinstance(bits, int) else None,
        "weights": weights,
        "seconds": seconds,
    }
    quantised = f", {bits} bits" if told["bits"] else ""
    said = (
        f"{told['type']}, {layers} layers{quantised}, {format_size(weights)},"
        f" loaded in {seconds:.1f} s"
    )
    return Diagnosis(_PART, "model", said, figures=told)


def _measured(loaded: LoadedModel, folder: Path) -> Iterator[Diagnosis]:
    from ..engine.self_test import SelfTest
    from ..engine.wired import WIRED
    from ..models.layers import weights_in

    WIRED.hold(id(loaded), weights_in(loaded.model))
    try:
        with closing(SelfTest(loaded, folder, time.monotonic() + SECONDS)) as test:
            for measurement in test.measurements():
                yield from diagnoses(measurement)
    finally:
        WIRED.release(id(loaded))


def diagnoses(measured: Measurement) -> Iterator[Diagnosis]:
    """A measurement as lines."""
    match measured:
        case Speeds():
            yield _speeds(measured)
        case WarmBesideCold():
            yield _same_chunks(measured)
            yield _other_chunks(measured)
        case RestoreBesideMemory():
            yield _restored(measured)
        case BatchBesideAlone():
            yield _together(measured)
        case NotFound():
            stored = counted(measured.stored, "token")
            said = f"{measured.cached} of {stored} found again: {measured.why}"
            yield Diagnosis(_PART, measured.part, said, Health.WRONG, REPORT)
        case NotKept():
            todo = "its answers are computed anew each time"
            yield Diagnosis(_PART, "cached", f"no: {measured.why}", Health.NOTE, todo)
        case NotInTime():
            todo = "this machine needs longer than a minute with this model"
            yield Diagnosis(_PART, measured.part, "left out: no time", Health.NOTE, todo)


def _speeds(found: Speeds) -> Diagnosis:
    said = (
        f"prefill {found.prefill:.0f}, decode {found.decode:.1f} tokens a second,"
        f" over {counted(found.prompt, 'token')} in {found.dtype}"
    )
    told = asdict(found)
    if found.finite:
        return Diagnosis(_PART, "speed", said, figures=told)
    todo = "its weights are damaged, or this mlx-lm can't run it: fetch it again"
    return Diagnosis(_PART, "speed", "its logits are no numbers", Health.WRONG, todo, told)


def _same_chunks(found: WarmBesideCold) -> Diagnosis:
    """The promise: what comes from the cache gives what computing it in the same pieces gives."""
    what, apart, told = "warm beside cold", found.same_chunks, _plain(asdict(found))
    tokens = f"{found.cached} of {counted(found.prompt, 'token')} from memory"
    if apart.same_bits and apart.same_tokens:
        return Diagnosis(_PART, what, f"{tokens}: equal bit for bit", figures=told)
    again = found.again
    if again is None or (again.same_bits and again.same_tokens) or _worse(apart, again):
        said = f"{tokens}: {_told(apart)}; computed twice, {_told(again) if again else 'unknown'}"
        todo = f"{REPORT}; -o cache false goes without"
        return Diagnosis(_PART, what, said, Health.WRONG, todo, told)
    said = f"{tokens}: {_told(apart)}; computed twice, {_told(again)}"
    todo = "this device gives other bits each time, with the cache and without"
    return Diagnosis(_PART, what, said, Health.NOTE, todo, told)


def _worse(apart: Apart, again: Apart) -> bool:
    """Tell whether two runs are further apart than rounding explains that differs each time."""
    return not apart.logits <= 4 * again.logits


def _other_chunks(found: WarmBesideCold) -> Diagnosis:
    """The rest of it: equal up to rounding, since a prompt was cut elsewhere."""
    what = "warm beside one go"
    said = f"{_told(found.one_go)}; other chunks without the cache, {_told(found.other_chunks)}"
    told = _plain(
        {
            "logits": found.one_go.logits,
            "other_chunks": found.other_chunks.logits,
            "most": found.most,
            "bound": found.bound,
        }
    )
    blameless = found.same_chunks.same_bits  # the cache; then it is the model that differs
    for apart in (found.other_chunks, *([found.one_go] if blameless else ())):
        if not apart.logits <= found.bound:
            said = f"{said}, where rounding in its dtype gives {found.bound:.1e} at most"
            return Diagnosis(_PART, what, said, Health.WRONG, _CHUNKS_MATTER, told)
    if all(
        apart.logits <= found.most and apart.same_tokens
        for apart in (found.one_go, found.other_chunks)
    ):
        return Diagnosis(_PART, what, said, figures=told)
    todo = "rounding of other chunks turns near ties here, with any prompt cache"
    return Diagnosis(_PART, what, said, Health.NOTE, todo, told)


def _restored(found: RestoreBesideMemory) -> Diagnosis:
    what, told = "restored beside memory", _plain(asdict(found))
    times = (
        f"{counted(found.tokens, 'token')}, {format_size(found.nbytes)} in"
        f" {found.seconds * 1e3:.0f} ms, computed in {found.computed_seconds * 1e3:.0f} ms"
    )
    if not found.same_rows:
        said = f"{times}: the rows differ from what was stored"
        todo = f"{REPORT}; LLM_MLX_CACHED_DISK=0 goes without the disk"
        return Diagnosis(_PART, what, said, Health.WRONG, todo, told)
    if not found.apart.same_bits:
        said = f"{times}: the same rows, {_told(found.apart)}"
        if not found.apart.same_tokens or _finite(found.apart.logits) is None:
            return Diagnosis(_PART, what, said, Health.WRONG, REPORT, told)
        todo = "this device gives other bits each time, with the cache and without"
        return Diagnosis(_PART, what, said, Health.NOTE, todo, told)
    return Diagnosis(_PART, what, f"{times}: equal bit for bit", figures=told)


def _together(found: BatchBesideAlone) -> Diagnosis:
    what, told = "together beside alone", _plain(asdict(found))
    if found.why:
        todo = "prompts at once take turns, so no answer changes"
        return Diagnosis(_PART, what, f"never: {found.why}", Health.NOTE, todo, told)
    said = f"{found.rows} at once: {_told(found.apart)}"
    if found.apart.logits <= found.most and found.apart.same_tokens:
        return Diagnosis(_PART, what, said, figures=told)
    if found.apart.logits <= found.most:
        todo = "rounding turns near ties here, with any batch"
        return Diagnosis(_PART, what, said, Health.NOTE, todo, told)
    said = f"{said}, where {found.most:.1e} is rounding"
    return Diagnosis(_PART, what, said, Health.WRONG, REPORT, told)


def _told(apart: Apart) -> str:
    answers = "the same answer" if apart.same_tokens else "ANOTHER ANSWER"
    off = "the same logits" if apart.same_bits else f"logits off by {apart.logits:.1e}"
    return f"{off}, {answers}"


def _plain(figures: dict[str, Any]) -> dict[str, Any]:
    """Figures as JSON can tell them."""
    plain: dict[str, Any] = {}
    for name, one in figures.items():
        plain[name] = _plain(one) if isinstance(one, dict) else one
        if isinstance(one, float):
            plain[name] = _finite(one)
    return plain


def _finite(number: float) -> float | None:
    return number if abs(number) < float("inf") else None
