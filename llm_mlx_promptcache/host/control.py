"""What is asked of a host beside answers: a function each, from the ask to its result.

They run on threads beside the loop, several at a time, and use no MLX there. What they raise is
told to who asked. `ps` adds to what the server tells of itself; `stop` is the server's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..engine.pool import engines

Handler = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def ps(_ask: Mapping[str, Any]) -> Mapping[str, Any]:
    """The models that were asked for, and whether each is in memory."""
    held = [{"model": name, "loaded": engine.loaded} for name, engine in engines().items()]
    return {"models": held}


def unload(ask: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give a model's memory back, unless it answers; waits `seconds` for that, 60 at most."""
    engine, seconds = engines().get(str(ask.get("model"))), ask.get("seconds")
    wait = min(float(seconds), 60.0) if isinstance(seconds, (int, float)) else 30.0
    return {"unloaded": engine is None or engine.unload(max(wait, 0.0))}


HANDLERS: dict[str, Handler] = {"ps": ps, "unload": unload}
