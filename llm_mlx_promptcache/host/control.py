"""Asks of a host beside answers: a function each, from the ask to its result.

They run on threads beside the loop, several at a time, and use no MLX there. Their errors go to the
client. `ps` adds to the server's own status; `stop` is the server's own. An ask is untrusted, as
all that comes over a socket.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from ..config import MOST_DAYS
from ..engine import wire
from ..engine.explained import AnsweredPrompt, explained
from ..engine.pool import cache_in_use, disk_store, engines, weights
from ..engine.request import GenerationRequest
from .memory_tree import MemoryTree, NamedSpan
from .shown_span import ShownSpan

if TYPE_CHECKING:
    from ..cache.prompt_cache import PromptCache

Handler = Callable[[Mapping[str, Any]], Mapping[str, Any]]

_MOST_TOKENS = 1 << 24  # of a path that is asked for; no model's context is as long
_NOTHING: Mapping[str, Any] = {"memory": None, "models": []}


def ps(_ask: Mapping[str, Any]) -> Mapping[str, Any]:
    """The models that were asked for, the memory of each, and whether its weights are loaded."""
    loaded, cache = weights(), cache_in_use()
    held = {one.model: one.bytes for one in cache.models()} if cache is not None else {}
    names = [*engines(), *(name for name in held if name not in engines())]
    models = [
        {
            "model": name,
            "loaded": name in loaded,
            "weights": loaded.get(name, 0),
            "cache": held.get(name, 0),
        }
        for name in names
    ]
    return {"models": models, "memory": None if cache is None else _in_use(cache)}


def unload(ask: Mapping[str, Any]) -> Mapping[str, Any]:
    """Free a model's memory, unless it is answering; waits `seconds` for that, 60 at most."""
    engine, seconds = engines().get(str(ask.get("model"))), ask.get("seconds")
    wait = min(float(seconds), 60.0) if isinstance(seconds, (int, float)) else 30.0
    return {"unloaded": engine is None or engine.unload(max(wait, 0.0))}


def stats(_ask: Mapping[str, Any]) -> Mapping[str, Any]:
    """The contents of the cache in memory, in all and for each model."""
    cache = cache_in_use()
    if cache is None:
        return _NOTHING
    memory = cache.stats(sum(weights().values()))["memory"]
    return {"memory": memory, "models": [one._asdict() for one in cache.models()]}


def tree(ask: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tokens of each stored span that are in memory too, and the spans that only memory has.

    With `text` true also the first words of each span whose model is on this machine.
    """
    cache, listing = cache_in_use(), disk_store().listing()
    found = None if cache is None else MemoryTree(cache, listing)
    held, alone = ({}, []) if found is None else (found.held, found.alone)
    told = {"held": held, "alone": [span._asdict() for span in alone]}
    if ask.get("text") is True:
        stored = [ShownSpan.stored(span, held.get(span.file_id, 0)) for span in listing.spans]
        return {**told, "texts": _texts([*stored, *alone])}
    return told


def clear(ask: Mapping[str, Any]) -> Mapping[str, Any]:
    """Forget spans in memory and on the disk, all or those of one model or unused for some days."""
    model, days = to_clear(ask)
    cache = cache_in_use()
    if cache is None:
        return {"memory": 0, "disk": 0}
    return cache.forget(model=model, days=days)._asdict()


def to_clear(ask: Mapping[str, Any]) -> tuple[str | None, float | None]:
    """The model that is to be cleared, and the age; None for all. ValueError for neither."""
    model, days = ask.get("model"), ask.get("days")
    if model is not None and not isinstance(model, str):
        raise ValueError("the model to clear is no name")
    if days is not None and not (isinstance(days, (int, float)) and 0 <= days < MOST_DAYS):
        raise ValueError("the age to clear is no number of days")
    return model, days


def pin(ask: Mapping[str, Any]) -> Mapping[str, Any]:
    """Pin or unpin the path to a span, in memory and on the disk, by the id that `tree` has.

    `found` is the number of spans whose ids begin like this; unless it is 1, nothing is done.
    Spans kept off the disk are pinned in memory alone.
    """
    pinned, meant, cache = ask.get("pinned") is True, to_pin(ask), cache_in_use()
    if len(meant) != 1:
        return {"found": len(meant)}
    ((_, namespace, path),) = meant
    if cache is not None:
        with suppress(ValueError):  # not all of it is in memory: the disk may have it
            _beside(partial(cache.pin if pinned else cache.unpin, namespace, path))
    disk_store().pin(namespace, path, pinned=pinned)
    return pinned_span(meant[0])


def to_pin(ask: Mapping[str, Any]) -> list[NamedSpan]:
    """The spans whose ids begin as the ask says, on the disk, or else in memory alone."""
    name, cache, listing = str(ask.get("id", "")), cache_in_use(), disk_store().listing()
    meant = [NamedSpan(s.file_id, s.namespace, listing.path(s)) for s in listing.named(name)]
    if cache is not None and not meant:
        meant = MemoryTree(cache, listing).named(name)
    return meant


def pinned_span(span: NamedSpan) -> Mapping[str, Any]:
    """The answer to an ask that pinned or unpinned the path to a span."""
    span_id, namespace, path = span
    return {"found": 1, "id": span_id, "namespace": namespace, "path": path.tolist()}


def flush(_ask: Mapping[str, Any]) -> Mapping[str, Any]:
    """Write everything to the disk that it lacks, short ends of paths too, and wait for that."""
    cache = cache_in_use()
    if cache is not None:
        _beside(cache.flush)
    return {}


def held(ask: Mapping[str, Any]) -> Mapping[str, Any]:
    """The number of a prompt's tokens that are in memory."""
    namespace, tokens = ask.get("namespace"), ask.get("tokens")
    if not isinstance(namespace, str) or not isinstance(tokens, list) or not tokens:
        raise ValueError("the prompt that is asked for is none")
    if len(tokens) > _MOST_TOKENS or not all(type(one) is int and one >= 0 for one in tokens):
        raise ValueError("the tokens that are asked for are none")
    cache = cache_in_use()
    return {"tokens": 0 if cache is None else cache.in_memory(namespace, tokens)}


def explain(ask: Mapping[str, Any]) -> Mapping[str, Any]:
    """The stored part of a prompt that was answered, on the disk and in memory, rendered again."""
    asked = _answered(ask)
    found = explained(asked, disk_store().listing())
    cache, ids = cache_in_use(), found.ids
    in_memory = 0 if cache is None or not ids else cache.in_memory(asked.namespace, ids)
    return {"now": {**found.now, "in_memory": in_memory}, "nearest": found.nearest}


HANDLERS: dict[str, Handler] = {
    "ps": ps,
    "stats": stats,
    "tree": tree,
    "clear": clear,
    "pin": pin,
    "flush": flush,
    "held": held,
    "explain": explain,
    "unload": unload,
}


def _in_use(cache: PromptCache) -> Mapping[str, int]:
    """The memory that MLX holds here, that it keeps in freed buffers, and that the cache counts."""
    from ..cache.layers.device_memory import active, pooled

    return {"active": active(), "pool": pooled(), "counted": cache.nbytes}


def _answered(ask: Mapping[str, Any]) -> AnsweredPrompt:
    """The prompt that an ask is about; ValueError where it is invalid."""
    given, rendered = ask.get("request"), ask.get("rendered")
    words = [ask.get(name) for name in ("reference", "namespace", "fingerprint")]
    if not isinstance(given, Mapping) or not isinstance(rendered, Mapping):
        raise ValueError("the prompt that is asked for is none")
    request = wire.from_json(given)
    if not isinstance(request, GenerationRequest) or not all(isinstance(w, str) for w in words):
        raise ValueError("the prompt that is asked for is none")
    reference, namespace, fingerprint = map(str, words)
    return AnsweredPrompt(request, reference, namespace, fingerprint, rendered)


def _texts(spans: Iterable[ShownSpan]) -> dict[str, str]:
    """The first words of spans by id, as far as their models are on this machine."""
    from ..models.tokenizer_alone import FirstWords

    words = FirstWords()
    told = {span.id: words.of(span.model, span.first_tokens) for span in spans}
    return {span_id: text for span_id, text in told.items() if text is not None}


def _beside(work: Callable[[], object]) -> None:
    """Run work that needs MLX on a thread of its own, which leaves MLX properly at its end."""
    failed: list[BaseException] = []

    def run() -> None:
        from ..models.threads import leave_thread

        try:
            work()
        except BaseException as error:
            failed.append(error)
        finally:
            leave_thread()

    thread = threading.Thread(target=run, name="host-control")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
