"""Writer: the thread that writes spans behind the caller's back, and its queue.

No lookup and no answer ever waits for it: waiting spans are found here, in memory, and if too much
waits the next span stays with its owner. Only a flush waits, and not for a lock that stays shut.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Collection, Iterable
from enum import Enum, auto
from typing import Final, Literal, NamedTuple

from ..layers.layout import PathPart, cut_anywhere
from ..span import NewSpan, StoredSpan
from ..store import NullStore, Store
from ..trie import Tokens, common_prefix

_log = logging.getLogger(__name__)

FLUSH_SECONDS: Final = 2.0  # that a flush waits, once, while another process holds the index
_RETRY_SECONDS: Final = 0.05  # between the tries of such a flush
_TELL_SECONDS: Final = 30.0  # a pause of this length is told though nobody flushes
_MOST_USES: Final = 64  # paths whose uses wait to be counted, in one transaction
MOST_WAITING: Final = 256 << 20  # bytes; then no more is taken
_LEAST_WAITING: Final = 16 << 20  # bytes; a small budget must not lose what could be written
_SHARE: Final = 4  # waiting spans may take this part of the memory's budget beside it


class QueueState(Enum):
    """The progress of the first in the queue."""

    FREE = auto()  # nothing keeps it from being written
    BLOCKED = auto()  # another process is in the way; nobody has waited for that yet
    HURRIED = auto()  # the same, and a flush is waiting
    GIVEN_UP = auto()  # the same, and a flush has waited in vain: the next one doesn't


class Tending(Enum):
    """The work that is left to the store."""

    NONE = auto()
    MORE = auto()  # some, that nobody waits for
    DUE = auto()  # a span was saved since it was last tended
    UNDER_WAY = auto()  # that is being done


class Use(NamedTuple):
    """A path that a request resumed."""

    namespace: str
    path: Tokens[int]


_Item = NewSpan | list[Use] | Literal["tend"]


def most_waiting(memory_bytes: int) -> int:
    """The bytes that may wait to be written beside so large a budget of memory."""
    return min(max(memory_bytes // _SHARE, _LEAST_WAITING), MOST_WAITING)


class Writer:
    """Writes spans in order; a daemon that `wait` makes reliable."""

    def __init__(self, store: Store, most_waiting: int = MOST_WAITING) -> None:
        self._store = store
        self._most_waiting = most_waiting
        self._keeps = not isinstance(store, NullStore)
        self._uses: list[Use] = []
        self._looked = self._lost = False
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._queue: deque[_Item] = deque()  # the first is being written
        self._waiting = 0
        self._progress = QueueState.FREE
        self._tending = Tending.NONE
        self._told = False
        self._unwanted: _Item | None = None  # the first in the queue, where nobody wants it now
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """True if something is on its way."""
        return self._process == os.getpid() and bool(self._queue)

    @property
    def waiting(self) -> int:
        """Bytes on their way, which are memory until they are written."""
        return self._waiting if self._process == os.getpid() else 0

    @property
    def has_room(self) -> bool:
        """True if one more span may wait."""
        return self._process != os.getpid() or self._waiting < self._most_waiting

    def put(self, span: NewSpan) -> None:
        """Queue a span to be written."""
        self._after_fork()
        with self._changed:
            self._waiting += span.nbytes
            self._append(span)

    def note_lookup(self) -> None:
        """Note that the store was asked: it may have something to write down."""
        self._looked = self._keeps

    def note_use(self, namespace: str, path: Tokens[int]) -> None:
        """Note that a request resumed this path from memory: if it is stored too, that is a use."""
        if self._keeps and len(path):
            self._uses.append(Use(namespace, path))
            if len(self._uses) >= _MOST_USES:
                self.count_uses()

    def count_uses(self) -> None:
        """Report all uses to the store at once, after earlier spans, and have them written."""
        uses, self._uses = self._uses, []
        looked, self._looked = self._looked, False
        self._after_fork()
        with self._changed:
            if uses:
                self._append(uses)
            if uses or looked:
                self._append("tend")

    @property
    def coming(self) -> list[NewSpan]:
        """The spans on their way, in the order in which the store gets them."""
        if not self.busy:
            return []
        with self._changed:
            return [item for item in self._queue if isinstance(item, NewSpan)]

    def parts(self, namespace: str, ids: Tokens[int], start: int) -> list[PathPart]:
        """The waiting parts of a path from token `start` on, as parts to resume from."""
        spans = self._with_rows(namespace)
        parts: list[PathPart] = []
        while True:
            going_on = [
                (common_prefix(span.path, ids), span)
                for span in spans
                if span.start == start or (span.start < start and cut_anywhere(span.layout))
            ]
            end, span = max(going_on, key=lambda pair: pair[0], default=(0, None))
            if span is None or end <= start:
                return parts
            parts.append(PathPart(start, end, len(span.path), span.pieces))
            start = end

    def holds(self, namespace: str, ids: Tokens[int], start: int) -> bool:
        """True if a waiting span could resume `ids` after token `start`."""
        for span in self.coming:
            shared = common_prefix(span.path, ids) if span.namespace == namespace else 0
            whole = span.resumes and shared == len(span.path)
            if shared > start and (whole or cut_anywhere(span.layout)):
                return True
        return False

    def wait(self) -> int:
        """Wait until all spans are written, or can't be; returns the number of spans left.

        While another process holds the index, this waits `FLUSH_SECONDS` once, and not again.
        """
        if self._process != os.getpid():
            return 0
        with self._changed:
            while not self._idle:
                self._changed.wait_for(lambda: self._idle or self._progress is not QueueState.FREE)
                if self._idle or self._progress is not QueueState.BLOCKED:
                    break
                self._progress = QueueState.HURRIED
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._progress is QueueState.FREE, FLUSH_SECONDS)
                if self._progress is QueueState.HURRIED:
                    self._progress = QueueState.GIVEN_UP
            left = sum(isinstance(item, NewSpan) for item in self._queue)
            if left:
                self._tell(left)
            return left

    def drop(self, namespaces: Collection[str] | None) -> None:
        """Drop the waiting spans of these namespaces, or all.

        The span being written is waited for, unless it waits for another process itself.
        """
        if self._process != os.getpid():
            return
        with self._changed:
            if not self._queue:
                return
            first, *rest = self._queue
            kept = [left for item in rest if (left := _without(item, namespaces)) is not None]
            self._waiting -= sum(_nbytes(item) for item in rest) - sum(map(_nbytes, kept))
            self._queue = deque([first, *kept])
            if _without(first, namespaces) is not first:
                self._unwanted = first
                self._changed.notify_all()
                self._changed.wait_for(lambda: not self._queue or self._queue[0] is not first)

    def forget_uses(self, namespaces: Collection[str] | None) -> None:
        """Forget waiting uses of paths of these namespaces, or of any."""
        self._uses = _other_uses(self._uses, namespaces)

    def tell_lost(self) -> None:
        """Report once that a span leaves memory before it can be written."""
        if not self._lost:
            self._lost = True
            _log.warning("the disk is too slow: some spans are not kept in the disk cache")

    @property
    def _idle(self) -> bool:
        """True if nothing is left to do, except evictions that take many rounds."""
        return not self._queue and self._tending in (Tending.NONE, Tending.MORE)

    def _with_rows(self, namespace: str) -> list[NewSpan]:
        return [one for one in self.coming if one.namespace == namespace and len(one.pieces)]

    def _after_fork(self) -> None:
        if self._process != os.getpid():  # the thread stayed with the parent
            self._start()

    def _append(self, item: _Item) -> None:
        self._queue.append(item)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="span-writer", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        while (item := self._next()) is not None:
            done = item is self._unwanted or self._written(item)
            with self._changed:
                if done or item is self._unwanted:
                    done, self._unwanted = True, None
                    self._queue.popleft()
                    self._waiting -= _nbytes(item)
                    self._progress, self._told = QueueState.FREE, False
                elif self._progress is QueueState.FREE:
                    self._progress = QueueState.BLOCKED
                self._changed.notify_all()
                del item
                if not done:
                    self._pause()

    def _next(self) -> _Item | None:
        """The first in the queue; if there is none, the store is tended, and the thread ends."""
        while True:
            with self._changed:
                if self._queue:
                    return self._queue[0]
                if self._tending is Tending.NONE:
                    # A thread that waited for ever would keep every cache of a process alive.
                    self._thread = None
                    return None
                if self._tending is Tending.DUE:
                    self._tending = Tending.UNDER_WAY
            left = self._tend()
            with self._changed:
                self._tending = left
                self._changed.notify_all()

    def _pause(self) -> None:
        """Wait until it is time for a retry, or somebody flushes."""
        pause = self._store.pause
        if pause >= _TELL_SECONDS:
            self._tell(sum(isinstance(item, NewSpan) for item in self._queue))
        if self._progress is QueueState.HURRIED:
            self._changed.wait(_RETRY_SECONDS)
        else:
            longest = max(pause, _RETRY_SECONDS)
            self._changed.wait_for(
                lambda: self._progress is QueueState.HURRIED or self._unwanted is not None, longest
            )
        if self._progress is QueueState.HURRIED:
            self._store.try_again()

    def _written(self, item: _Item) -> bool:
        """Write one; False if it has to wait, since another process is in the way."""
        try:
            if isinstance(item, NewSpan):
                saved = self._store.save(item)
                if saved:
                    self._tending = Tending.DUE
                return saved or self._store.pause == 0
            if isinstance(item, list):
                self._count(item)
            else:
                self._tending = self._tend()
        except Exception as error:  # a store of somebody else's: it must not end the thread
            _log.warning("a span could not be stored: %s", error)
        return True

    def _tend(self) -> Tending:
        """Have the store do some of its remaining work; the rest when nothing is waiting."""
        try:
            done = self._store.tend()
        except Exception as error:
            _log.warning("the disk cache could not be kept in order: %s", error)
            return Tending.NONE
        return Tending.NONE if done or self._store.pause else Tending.MORE

    def _count(self, uses: Iterable[Use]) -> None:
        """Count a use of the spans along these paths, and of the checkpoints at their ends."""
        found: dict[str, StoredSpan] = {}
        for namespace, path in uses:
            spans, checkpoints = self._store.lookup(namespace, path)
            ends = [span for span in checkpoints if span.end == len(path)]
            found |= {span.file_id: span for span in (*spans, *ends)}
        if found:
            self._store.used(list(found.values()))

    def _tell(self, left: int) -> None:
        if not self._told:
            self._told = True
            _log.warning(
                "not in the disk cache yet, and lost if this process ends now: %d span%s; another"
                " process holds the index locked (is one stopped?)",
                left,
                "s" * (left != 1),
            )


def _without(item: _Item, namespaces: Collection[str] | None) -> _Item | None:
    """The rest of an item without these namespaces, or without any; None for nothing."""
    if isinstance(item, NewSpan):
        return None if namespaces is None or item.namespace in namespaces else item
    if isinstance(item, list):
        others = _other_uses(item, namespaces)
        return item if len(others) == len(item) else (others or None)
    return item


def _other_uses(uses: list[Use], namespaces: Collection[str] | None) -> list[Use]:
    return [use for use in uses if namespaces is not None and use.namespace not in namespaces]


def _nbytes(item: _Item) -> int:
    return item.nbytes if isinstance(item, NewSpan) else 0
