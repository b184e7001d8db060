"""Ranks: the processes that run one model together, and the words between them.

Rank 0 decides and tells; the others do the same. Words go over a line of their own, a star round
rank 0, and never over MLX's collectives: who waits here burns no core, sees at once that another
rank is gone, and can't get between two collectives of the model. No MLX here.

    ranks = meet(group, address, secret, name)      # on every rank (meeting.py)
    ranks.tell({...})                               # rank 0
    while (word := ranks.hear()) is not None: ...   # the others; None: rank 0 closed
    least, most = ranks.agree(cached, matched)      # all of them, at the same word
    with ranks.step(): ...                          # what the model does, watched
    raise ranks.fail("the model has no memory left")

A rank that is gone, silent or stuck ends the group: who waits here has GroupEnded, and `on_end` is
called once, on whatever thread saw it, since the model's may hang in a collective for ever.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from ..models.errors import one_line
from .group import Deadlines, Group, GroupEnded
from .rank_links import FrameKind, LinkError, RankLink
from .rank_watch import RankWatch

EXIT_STATUS: Final = 70  # of a rank whose group has ended

_LONGEST_WHY: Final = 500
_LAST_WORDS: Final = 2.0  # seconds that are waited for those of a rank that is gone


class SeenRank(NamedTuple):
    """A rank as rank 0 sees it: its host, seconds since it spoke, bytes that MLX holds there."""

    rank: int
    name: str
    seconds: float
    held: int


@dataclass
class _Heard:
    """The time when a rank was last heard, the bytes it said it holds, and shares to be read."""

    at: float
    held: int = 0
    shares: deque[dict[str, Any]] = field(default_factory=deque)


def leave(why: str) -> None:
    """End this process, whatever its threads wait for: the group has ended."""
    import sys

    with suppress(OSError, ValueError):
        sys.stderr.write(f"{why}\n")
        sys.stderr.flush()
    os._exit(EXIT_STATUS)


class Ranks:
    """The others of a group, linked; made by `meet`. Calls are the model's thread's, but `fail`.

    `held` is what the owner says that MLX holds here, in bytes; the next beat tells it.
    """

    def __init__(
        self,
        group: Group,
        links: Sequence[RankLink],
        name: str = "",
        deadlines: Deadlines = Deadlines(),  # noqa: B008 (nobody can change it)
        on_end: Callable[[str], None] = leave,
    ) -> None:
        self.group = group
        self.name = name
        self.held = 0
        self.why = ""  # it has ended, once it has
        self._closed = False
        self.deadlines = deadlines
        self._on_end = on_end
        self._links = {link.peer: link for link in links}
        now = deadlines.clock()
        self._heard = {link.peer: _Heard(now) for link in links}
        self._words: deque[dict[str, Any]] = deque()
        self._lock = threading.Lock()  # of what is sent
        self._news = threading.Condition()  # of what was heard
        self._watch = RankWatch(self._links, deadlines)
        self._beaten = now
        self._thread: threading.Thread | None = None
        self._parted = threading.Event()  # the others were told of the end
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        self._waker.settimeout(0)
        self._woken.settimeout(0)
        self._selector.register(self._woken, selectors.EVENT_READ)
        for link in links:
            self._selector.register(link.sock, selectors.EVENT_READ, link)

    def start(self) -> None:
        """Listen and beat from a thread of its own, until the group ends."""
        self._thread = threading.Thread(target=self._run, name="ranks", daemon=True)
        self._thread.start()

    # What the model's thread says and hears.

    def tell(self, word: Mapping[str, Any]) -> None:
        """Rank 0: tell the others what they do next; GroupEnded. An empty word takes 6 bytes."""
        self._check()
        self._send(FrameKind.WORD, word)

    def hear(self) -> dict[str, Any] | None:
        """The next word of rank 0, waited for; None where it closed the group. GroupEnded."""
        with self._news:
            while not self._words:
                if self._closed:
                    return None
                self._check()
                self._news.wait()
            return self._words.popleft()

    def agree(self, *numbers: int) -> tuple[list[int], list[int]]:
        """The least and the most of each number over all ranks, who all call this; GroupEnded."""
        found = self.gather({"of": list(map(int, numbers))}, _least_and_most)
        return found["least"], found["most"]

    def check_alike(self, facts: Mapping[str, str]) -> None:
        """GroupEnded, naming rank and fact, where the ranks don't have all the same facts."""
        found = self.gather({"of": dict(facts)}, self._differing)
        if found["why"]:
            raise self.fail(str(found["why"]))

    def gather(
        self,
        mine: Mapping[str, Any],
        joined: Callable[[list[dict[str, Any]]], Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Rank 0's result of every rank's part, in their order; the same on all of them."""
        with self.step():
            if self.group.rank:
                self._send(FrameKind.SHARE, mine)
                return self._share_of(0)
            parts = [dict(mine), *(self._share_of(rank) for rank in sorted(self._links))]
            try:
                found = dict(joined(parts))
            except (KeyError, TypeError, ValueError, IndexError):
                why = "the ranks are out of step: each tells another thing"
                raise self.fail(why) from None
            self._send(FrameKind.SHARE, found)
            return found

    @contextmanager
    def step(self, seconds: float | None = None) -> Iterator[None]:
        """Watch what is done inside: where it takes too long, the group ends.

        One inside another counts in the outer one's time.
        """
        if not self._closed:  # words that came before that are still done
            self._check()
        with self._watch.step(seconds):
            yield

    def silence(self, seconds: float) -> AbstractContextManager[None]:
        """Let the others say nothing for so long inside; what fails there ends the group."""
        return self._watch.silence(seconds)

    def loading(self) -> AbstractContextManager[None]:
        """`step`, for what loads the model: disks differ."""
        return self.step(self.deadlines.loading)

    # The end.

    def fail(self, why: str) -> GroupEnded:
        """End the group for all, with a reason; to be raised. Any thread may."""
        self._end(why)
        return GroupEnded(self.why or why)

    def failed(self, error: BaseException) -> GroupEnded:
        """End the group for what went wrong in a step of this rank; to be raised, by its thread.

        Where MLX lost its connection to another rank, that one's end is the reason, if it shows.
        """
        if str(error).startswith(f"[{self.group.backend.of_mlx}]") and self._thread is not None:
            with self._news:
                self._news.wait_for(lambda: self.ended, _LAST_WORDS)
        return self.fail(f"rank {self.group.rank} ({self.name}) failed: {one_line(error)}")

    def close(self) -> None:
        """Rank 0: nothing more will come, and that is no failure."""
        self._end("")

    def seen(self) -> list[SeenRank]:
        """Every rank, this one first, as they are seen from here."""
        now = self.deadlines.clock()
        found = [SeenRank(self.group.rank, self.name, 0.0, self.held)]
        for peer, link in sorted(self._links.items()):
            heard = self._heard[peer]
            found.append(SeenRank(peer, link.name, max(0.0, now - heard.at), heard.held))
        return found

    # The line.

    def turn(self, seconds: float) -> None:
        """Take in what has come, or comes in so many seconds; then beat and look, if it is time."""
        for key, events in self._selector.select(seconds):
            if key.data is None:
                with suppress(BlockingIOError):
                    self._woken.recv(1024)
                continue
            try:
                if events & selectors.EVENT_READ:
                    self._take(key.data)
                if events & selectors.EVENT_WRITE:
                    with self._lock:
                        key.data.flush()
            except LinkError as error:
                self._lost(key.data, error)
                return
        self._beat()
        self._end_if_overdue()
        for link in self._links.values():
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.waits else 0)
            if self._selector.get_key(link.sock).events != wanted:
                self._selector.modify(link.sock, wanted, link)

    @property
    def ended(self) -> bool:
        """True if nothing is said any more."""
        return self._closed or bool(self.why)

    def shut(self) -> None:
        """Close what a group that has ended held; its own thread does so where there is one."""
        for link in self._links.values():
            link.close()
        self._selector.close()
        self._waker.close()
        self._woken.close()

    def _run(self) -> None:
        try:
            while not self.ended:
                due = self._beaten + self.deadlines.beat - self.deadlines.clock()
                self.turn(max(0.0, due))
        except Exception as error:  # nobody else beats, looks at deadlines, or wakes who waits
            what = f"{type(error).__name__}: {error}"
            self._end(f"rank {self.group.rank} ({self.name}) can't watch the others ({what})")
        finally:
            self._parted.wait(_LAST_WORDS)  # whoever ended it tells the others first
            self.shut()

    def _take(self, link: RankLink) -> None:
        heard = self._heard[link.peer]
        for kind, data in link.received():
            heard.at = self.deadlines.clock()
            self._watch.heard(link.peer)
            if kind is FrameKind.END:
                left = f"{link} has left" if link.peer else ""
                self._end(_told(data) or left, told_by=link.peer)
                return
            if kind is FrameKind.BEAT:
                held = data.get("held")
                heard.held = held if type(held) is int and held >= 0 else 0
                continue
            with self._news:
                (self._words if kind is FrameKind.WORD else heard.shares).append(data)
                self._news.notify_all()

    def _beat(self) -> None:
        now = self.deadlines.clock()
        if now - self._beaten < self.deadlines.beat:
            return
        self._beaten = now
        with suppress(GroupEnded):
            self._send(FrameKind.BEAT, {"held": self.held})

    def _end_if_overdue(self) -> None:
        """End the group where a rank is silent, or this one is stuck."""
        late = self._watch.look()
        if late is None:
            return
        if late.peer is not None:
            self._end(f"{self._links[late.peer]} has said nothing for {late.seconds:g} seconds")
            return
        self._end(
            f"rank {self.group.rank} ({self.name}) waits for a step since {late.seconds:g}"
            " seconds: a rank may be stuck in it"
        )

    def _share_of(self, peer: int) -> dict[str, Any]:
        shares = self._heard[peer].shares
        with self._news:
            while not shares:
                self._check()
                self._news.wait()
            return shares.popleft()

    def _differing(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """The rank with other facts than rank 0, in words; "" where none has."""
        right = parts[0]["of"]
        for rank, part in enumerate(parts[1:], 1):
            for name, value in right.items():
                other = part["of"].get(name)
                if other != value:
                    told = one_line(str(other), 80)
                    return {
                        "why": f"{self._links[rank]} has {name} {told}, and rank 0"
                        f" ({self.name}) has {one_line(value, 80)}: they must be the same"
                    }
        return {"why": ""}

    def _check(self) -> None:
        if self.ended:
            raise GroupEnded(self.why or "the group of ranks is closed")

    def _send(self, kind: FrameKind, data: Mapping[str, Any]) -> None:
        waits = False
        for link in self._links.values():
            try:
                with self._lock:
                    link.send(kind, data)
                    waits |= link.waits
            except LinkError as error:
                raise self._lost(link, error) from error
        if waits:
            with suppress(OSError):  # woken already
                self._waker.send(b"w")

    def _lost(self, link: RankLink, error: LinkError) -> GroupEnded:
        """End the group for what happened to a link, or as its last words say, if it left some.

        Who closes a group is gone before all have read that; what is sent meanwhile fails first.
        """
        if self._thread in (None, threading.current_thread()):
            with suppress(LinkError):
                self._take(link)
        else:  # the line's own thread reads
            with self._news:
                self._news.wait_for(lambda: self.ended, _LAST_WORDS)
        if not self.ended:
            self._end(f"{link} {error}")
        return GroupEnded(self.why or "the group of ranks is closed")

    def _end(self, why: str, told_by: int | None = None) -> None:
        """The group is over: the others are told, then who waits here, then the owner."""
        with self._news:
            if self.ended:
                return
            self.why, self._closed = one_line(why, _LONGEST_WHY) if why else "", not why
            self._news.notify_all()
        for link in self._links.values():
            if link.peer != told_by:
                with suppress(LinkError), self._lock:
                    link.send(FrameKind.END, {"why": self.why})
        self._parted.set()
        if self.why:
            self._on_end(self.why)
        with suppress(OSError):
            self._waker.send(b"w")


def _least_and_most(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each rank's numbers, place by place; ValueError where they are not as many."""
    places = list(zip(*(part["of"] for part in parts), strict=True))
    if not all(type(number) is int for place in places for number in place):
        raise ValueError("a share is no list of numbers")
    return {"least": [min(place) for place in places], "most": [max(place) for place in places]}


def _told(data: Mapping[str, Any]) -> str:
    """The reason why another rank ended the group; "" where rank 0 closed it."""
    why = data.get("why")
    return why if isinstance(why, str) else "another rank ended the group"
