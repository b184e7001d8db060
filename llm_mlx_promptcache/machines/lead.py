"""Lead: what rank 0 has of the others, from their start to their end."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from ..engine.events import Loading
from ..engine.group import Deadlines, Group, GroupEnded
from ..engine.meeting import listen, meet
from ..engine.ranks import Ranks
from ..models.errors import ModelLoadError
from ..models.here import folder_here
from .mlx_variables import ports_of
from .orders import LeadOrder, RankOrder
from .rank_process import RankFailed, RankProcess
from .versions import files_differ, files_of, versions, versions_differ

HELLO_SECONDS: Final = 60.0  # of ssh and a Python that starts
_SECRET: Final = 32  # bytes
_LAST_WORDS: Final = 1.0  # seconds for the process of a rank that is gone to be seen to end
_WAIT: Final = 15.0  # for ranks that were told to end, which may be writing to their disks

TellLoading = Callable[[Loading], None]


class Lead:
    """The other ranks of one group; `meet` starts them, `close` ends them.

    `ended` is called once with why the group has ended, on the thread that saw it.
    """

    def __init__(self, order: LeadOrder, ended: Callable[[str], None]) -> None:
        self._order = order
        self.plan = order.plan
        self._ended = ended
        self._processes: list[RankProcess] = []
        self._closed = False
        self.ranks: Ranks | None = None
        self.ports: tuple[tuple[int, ...], ...] = ()  # MLX's, once they met

    @property
    def group(self) -> Group:
        """Rank 0's place."""
        plan = self.plan
        return Group(0, plan.size, plan.split, plan.backend)

    def meet(self, tell: TellLoading, deadlines: Deadlines = Deadlines()) -> Ranks:  # noqa: B008
        """Start the others, compare what they are, and wait for them; ModelLoadError says why not.

        None of them is left where one can't be had.
        """
        try:
            folder = folder_here(self.plan.model)
            if folder is None:
                raise ModelLoadError(_not_here(self.plan.model))
            self.ports = ports_of(self.plan, self._order.port)
            with listen((self._order.address, 0)) as sock:
                self._start(sock, tell)
                self._compare(folder)
                self.ranks = self._met(sock, deadlines)
            return self.ranks
        except (RankFailed, GroupEnded, OSError) as error:
            self.kill()
            raise ModelLoadError(str(error)) from error
        except BaseException:
            self.kill()
            raise

    def close(self) -> None:
        """The group's end, which was wished: what the others owe their disks they write first."""
        self._closed = True
        if self.ranks is not None:
            self.ranks.close()
        until = time.monotonic() + _WAIT
        for process in self._processes:
            process.end(max(0.0, until - time.monotonic()))

    def abandon(self) -> None:
        """End a group that is just being made: who waits for another rank waits no longer."""
        self._closed = True
        if self.ranks is not None:
            self.ranks.close()
        self.kill()

    def kill(self) -> None:
        """End every other rank at once."""
        self._closed = True
        for process in self._processes:
            process.kill()

    def shown(self) -> list[Mapping[str, Any]]:
        """Each rank for people: its host, its process, seconds since it spoke, bytes it holds."""
        seen = {} if self.ranks is None else {one.rank: one for one in self.ranks.seen()}
        pids = {0: os.getpid(), **{process.rank: process.pid for process in self._processes}}
        found: list[Mapping[str, Any]] = []
        for rank, machine in enumerate(self.plan.hosts.machines):
            one = seen.get(rank)
            found.append(
                {
                    "rank": rank,
                    "host": machine.ssh,
                    "pid": pids.get(rank),
                    "seconds": None if one is None else one.seconds,
                    "held": 0 if one is None else one.held,
                }
            )
        return found

    def _start(self, sock: socket.socket, tell: TellLoading) -> None:
        plan, secret = self.plan, secrets.token_hex(_SECRET)
        self._secret = secret
        address = sock.getsockname()[:2]
        for rank, machine in enumerate(plan.hosts.machines):
            if rank:
                tell(Loading(f"starting rank {rank} on {machine.ssh}"))
                order = RankOrder(plan, rank, self.ports, address, secret)
                self._processes.append(RankProcess(machine, order, self._order.python))
                if self._closed:  # who ended the others may not have seen this one
                    raise RankFailed("the start of the ranks was given up")

    def _compare(self, folder: Path) -> None:
        """RankFailed where one of them is not what we are: it would compute something else."""
        until = time.monotonic() + HELLO_SECONDS
        mine, files = versions(), files_of(folder)
        for process in self._processes:
            told = process.hello(until)
            why = (
                versions_differ(mine, told.get("versions"))
                or str(told.get("error") or "")[:500]
                or files_differ(files, told.get("files"))
            )
            if why:
                raise RankFailed(f"{process.host}: {why}")

    def _met(self, sock: socket.socket, deadlines: Deadlines) -> Ranks:
        over = threading.Event()
        watch = threading.Thread(target=self._watch, args=(sock, over), daemon=True)
        watch.start()
        name = self.plan.hosts.machines[0].ssh
        try:
            return meet(
                self.group, sock, bytes.fromhex(self._secret), name, deadlines, self._has_ended
            )
        except GroupEnded:
            for process in self._processes:
                if process.has_ended:
                    raise process.failed() from None
            raise
        finally:
            over.set()
            watch.join()

    def _watch(self, sock: socket.socket, over: threading.Event) -> None:
        """Wake who waits for a rank that has ended meanwhile."""
        while not over.wait(0.1):
            if any(process.has_ended for process in self._processes):
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                return

    def _has_ended(self, why: str) -> None:
        """The group is over, with a reason; a rank's own last words are part of it."""
        if self._closed:
            return
        told = [why]
        try:
            told += self._last_words()
            self.kill()
        finally:
            self._ended("; ".join(told))

    def _last_words(self) -> list[str]:
        """The last words of ranks whose processes end now."""
        until = time.monotonic() + _LAST_WORDS
        gone: list[RankProcess] = []
        while not gone and time.monotonic() < until:
            gone = [process for process in self._processes if process.has_ended]
            time.sleep(0.02)
        return [str(process.failed()) for process in gone]


def _not_here(model: str) -> str:
    return f"the model {model} is not on this machine; llm mlx-cached download {model} fetches it"
