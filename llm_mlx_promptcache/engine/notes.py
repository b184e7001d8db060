"""Notes that users are told once: where a prompt or a constraint differs from what they asked."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .reuse import Reuse

_MOST = 4096
_lock = threading.Lock()
_told: dict[tuple[str, str], None] = {}


def new_notes(model: str, notes: Iterable[str]) -> list[str]:
    """Those of `notes` that this process has not told about this model; they now count as told.

    Front ends call this, since each has its own way of telling its user.
    """
    with _lock:
        new = [note for note in dict.fromkeys(notes) if (model, note) not in _told]
        _told.update(dict.fromkeys((model, note) for note in new))
        while len(_told) > _MOST:
            del _told[next(iter(_told))]
    return new


def is_new_loss(reuse: Reuse) -> bool:
    """True if a turn lost what its conversation had, and nobody in this process was told of it.

    The engine reports it for one turn a conversation; that turn may be asked again, or streamed.
    """
    return bool(reuse.warns and new_notes("reuse", [reuse.warns]))
