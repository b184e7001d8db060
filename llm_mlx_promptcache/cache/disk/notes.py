"""Notes: lookups' findings about stored spans, kept in memory until they are written down.

A lookup never writes: it would wait for others, and for the disk.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import NamedTuple

from ..span import StoredPath


class Opened(NamedTuple):
    """A namespace that this process opened: its model's label and identity."""

    namespace: str
    label: str
    identity: str


class Noted(NamedTuple):
    """Findings to write down: spans that were used, are gone or in doubt, and models in use.

    Of `spoiled` spans the states and windows are damaged, and nothing else.
    """

    used: list[str]
    gone: dict[str, str]  # and the pack that they were in
    doubted: list[str]
    spoiled: list[str]
    opened: list[Opened]
    models: list[tuple[str, str]]


class Notes:
    """Shared by the threads of a process; a fork goes on with what its parent had not written."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._used: dict[str, None] = {}
        self._gone: dict[str, str] = {}
        self._doubted: dict[str, None] = {}
        self._spoiled: dict[str, bool] = {}  # whether it is still to be told
        self._names: dict[str, Opened] = {}
        self._opened: dict[Opened, None] = {}
        self._models: dict[tuple[str, str], bool] = {}  # identity and label; whether written down

    def __bool__(self) -> bool:
        noted = self._used or self._gone or self._doubted or self._opened
        return bool(noted or any(self._spoiled.values()) or not all(self._models.values()))

    def use(self, file_ids: Iterable[str]) -> None:
        """Note that requests went on from these."""
        with self._locked():
            self._used |= dict.fromkeys(file_ids)

    def lose(self, file_id: str, pack: str = "") -> None:
        """Note a span as gone or damaged in its place: lookups here no longer find it."""
        with self._locked():
            self._gone[file_id] = pack

    def doubt(self, file_id: str) -> None:
        """Note that a span differs from its row: until that is settled no lookup here finds it."""
        with self._locked():
            self._doubted[file_id] = None

    def lose_ends(self, file_id: str) -> None:
        """Note that a span's states and windows are damaged: lookups here go without them."""
        with self._locked():
            self._spoiled[file_id] = True

    def lacks_ends(self, file_id: str) -> bool:
        """True if a span's states and windows were seen to be damaged."""
        return file_id in self._spoiled

    def left(self, file_id: str) -> None:
        """Leave a spoiled span as it is: its file can't be written anew."""
        with self._locked():
            if file_id in self._spoiled:
                self._spoiled[file_id] = False

    def open(self, opened: Opened) -> None:
        """Note a namespace in use; its model counts as opened once a process."""
        with self._locked():
            if self._names.get(opened.namespace) == opened:
                return
            self._names[opened.namespace] = opened
            # Under no name at all, one model says nothing of another.
            if opened.identity and opened.label:
                self._opened[opened] = None
                self._models.setdefault((opened.identity, opened.label), False)

    def of(self, namespace: str) -> Opened:
        """The opening noted for a namespace."""
        return self._names.get(namespace, Opened(namespace, "", ""))

    def waiting(self) -> Noted:
        """All that is not written down yet."""
        with self._locked():
            models = [key for key, written in self._models.items() if not written]
            spoiled = [file_id for file_id, untold in self._spoiled.items() if untold]
            marked = list(self._used), dict(self._gone), list(self._doubted), spoiled
            return Noted(*marked, list(self._opened), models)

    def written(self, noted: Noted) -> None:
        """Forget these notes, which are in the index now."""
        with self._locked():
            for file_id in noted.used:
                self._used.pop(file_id, None)
            for opened in noted.opened:
                self._opened.pop(opened, None)
            self._models |= dict.fromkeys(noted.models, True)

    def settled(self, file_id: str) -> None:
        """Forget a doubt: the span has left the index too, or is found again."""
        with self._locked():
            self._gone.pop(file_id, None)
            self._doubted.pop(file_id, None)
            self._spoiled.pop(file_id, None)

    def without_gone(self, found: StoredPath) -> StoredPath:
        """A path up to the first of its spans that is known to be gone, or in doubt.

        It does not resume where states and windows are known to be damaged.
        """
        hidden = self._gone.keys() | self._doubted.keys()
        if not hidden and not self._spoiled:
            return found
        kept = []
        for span in found.spans:
            if span.file_id in hidden:
                break
            spoiled = span.file_id in self._spoiled
            kept.append(span._replace(resumes=False) if spoiled else span)
        end = kept[-1].end if kept else 0
        return StoredPath(
            kept, [c for c in found.checkpoints if c.end <= end and c.file_id not in hidden]
        )

    def _locked(self) -> threading.Lock:
        if self._process != os.getpid():  # the parent's may be held by a thread that stayed there
            self._process, self._lock = os.getpid(), threading.Lock()
        return self._lock
