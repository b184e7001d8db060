"""The host's part of one answer, apart from its engine's: a clock at each end of the socket.

The same prompt is answered through the host, in-process, and by an engine in another process that
is no host. Two engines that do the same work differ by more than a socket costs, so what a client
waits is compared with what the engine that answered it says itself; the third shows by how much two
processes differ.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from hosted_users import KEEP, Home, text

from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.config import HOME_VARIABLE
from llm_mlx_promptcache.engine.events import Event, Finished, TextDelta
from llm_mlx_promptcache.engine.pool import engine_for
from llm_mlx_promptcache.engine.request import GenerationRequest

_ANSWER = 64
_AFTER = 2.0  # seconds; what an engine does ahead is over then


class Asked(NamedTuple):
    """Seconds to the first event of the answer, tokens a second after it, and the end."""

    first: float
    rate: float
    finished: Finished


class Clocked(NamedTuple):
    """An answer by two clocks: its reader's, and its engine's own."""

    first: float
    rate: float
    engine_first: float
    engine_rate: float


def ask(engine: Any, request: GenerationRequest) -> Asked:
    """An answer, timed where it is read."""
    started = time.perf_counter()
    first = 0.0
    events: Iterator[Event] = engine.generate(request)
    for event in events:
        if isinstance(event, TextDelta) and not first:
            first = time.perf_counter() - started
        if isinstance(event, Finished):
            ended = time.perf_counter() - started
            rate = (event.usage.generated - 1) / max(ended - first, 1e-9)
            return Asked(first or ended, rate, event)
    raise RuntimeError("the engine ended without an answer")


def clocked(engine: Any, number: int) -> Clocked:
    """The answer to question `number`."""
    request = GenerationRequest(
        (
            Message("system", text(200)),
            Message("user", f"Count from {number} up to a hundred, please."),
        ),
        max_tokens=_ANSWER,
        drafts=False,  # who is asked last could copy the others' answers off the disk
    )
    asked = ask(engine, request)
    own = asked.finished.timings
    rate = (asked.finished.usage.generated - 1) / max(own.decode, 1e-9)
    return Clocked(asked.first, asked.rate, own.first_token, rate)


class OtherProcess:
    """An engine in a process of its own, asked through a pipe, without streaming."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        command = [sys.executable, __file__]
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def clocked(self, number: int) -> Clocked:
        """The answer to question `number`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        return Clocked(*json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def socket_cost(home: Home, rounds: int) -> dict[str, float]:
    """The cost of the host: ms until a first token, and its tokens a second as shares.

    Medians of rounds in which each of the three goes first, second and last equally often.
    """
    from llm_mlx_promptcache.host.client import RemoteEngine

    os.environ |= {name: home.environment[name] for name in (HOME_VARIABLE, KEEP)}
    far, near, other = RemoteEngine("default"), engine_for("default"), OtherProcess()
    ways = [
        lambda number: clocked(far, number),
        lambda number: clocked(near, number),
        other.clocked,
    ]
    found: list[dict[str, float]] = []
    for number in range(1 + 3 * -(-rounds // 3)):  # each order equally often
        answers: dict[int, Clocked] = {}
        for turn in range(3):
            way = (number + turn) % 3
            answers[way] = ways[way](number)
            time.sleep(_AFTER)
        if number:  # the first one loads the model
            found.append(compared(*(answers[way] for way in range(3))))
    other.close()
    # Who is asked first goes slower to its first token: three rounds in a row have each order once.
    threes = list(zip(found[::3], found[1::3], found[2::3], strict=True))
    return {
        name: statistics.median(statistics.fmean(one[name] for one in three) for three in threes)
        for name in found[0]
    }


def compared(far: Clocked, near: Clocked, other: Clocked) -> dict[str, float]:
    """The answer through the host, beside the same in-process and by another process's engine."""
    waited, own = far.first - far.engine_first, near.first - near.engine_first
    return {
        "first_token_ms": (waited - own) * 1e3,
        "whole_first_token_ms": (far.first - near.first) * 1e3,
        "other_first_token_ms": (other.engine_first - near.engine_first) * 1e3,
        "rate": (far.rate / far.engine_rate) / (near.rate / near.engine_rate),
        "whole_rate": far.rate / near.rate,
        "other_rate": other.engine_rate / near.engine_rate,
    }


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(clocked(engine_for("default"), int(line))), flush=True)
    os._exit(0)  # what its engine still does ahead is nobody's
