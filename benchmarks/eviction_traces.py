"""Traces for `eviction.py`: one in Mooncake's format, or seeded synthetic ones.

A request is a path of blocks, and the tier that each block would have in a cache.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import NamedTuple

from llm_mlx_promptcache.cache.memory.simulation import TracedPath
from llm_mlx_promptcache.cache.traces import read_trace

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"


class Request(NamedTuple):
    """The blocks of one prompt, from the root, and their tiers, both still to grow."""

    blocks: list[int]
    tiers: list[str]


def mooncake(path: Path) -> list[TracedPath]:
    """The requests of a trace file; without tiers in it, all blocks are in one."""
    with path.open("rb") as file:
        return [request.path for request in read_trace(file, str(path))]


class Author:
    """A seeded source of texts nobody has seen, in blocks, and of skewed choices."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._ids = count(seed << 32)

    def text(self, least: int, most: int) -> list[int]:
        """New blocks, between `least` and `most` of them."""
        return [next(self._ids) for _ in range(self.random.randint(least, most))]

    def popular(self, things: list[list[int]], skew: float = 1.0) -> int:
        """The index of one of `things`, the first the most likely (Zipf)."""
        weights = [1 / (rank + 1) ** skew for rank in range(len(things))]
        return self.random.choices(range(len(things)), weights)[0]


def agents(requests: int = 6000, seed: int = 0) -> list[Request]:
    """Forty agents with large shared prompts that grow by steps, among many short title calls."""
    author = Author(seed)
    chance = author.random
    prompts = [author.text(8, 24) for _ in range(4)]
    title = author.text(1, 1)

    def session() -> tuple[Request, float, list[int]]:
        prompt, task = prompts[author.popular(prompts)], author.text(1, 6)
        request = Request(prompt + task, [SYSTEM] * len(prompt) + [USER] * len(task))
        return request, chance.random() ** 2 + 0.02, [int(chance.expovariate(1 / 25)) + 2]

    live = [session() for _ in range(40)]
    trace: list[Request] = []
    while len(trace) < requests:
        if chance.random() < 0.45:
            text = author.text(1, 4)
            tiers = [SYSTEM] + [USER] * (len(text) - 1) + [ASSISTANT]
            trace.append(Request(title + text, tiers))
            continue
        at = chance.choices(range(len(live)), [pace for _, pace, _ in live])[0]
        request, _, left = live[at]
        trace.append(Request(request.blocks[:], request.tiers[:]))
        _say(request, author.text(1, 2), ASSISTANT)
        _say(request, author.text(0, 4), USER)
        left[0] -= 1
        if left[0] <= 0:
            live[at] = session()
    return trace


def chats(requests: int = 6000, seed: int = 0, thinking: bool = False) -> list[Request]:
    """Three hundred chats over six system prompts, with a think-time that is often long.

    With `thinking`, an answer is rendered again without it in the next turn, so that what was
    generated stays behind as a leaf that never comes back.
    """
    author = Author(seed)
    chance = author.random
    prompts = [author.text(2, 12) for _ in range(6)]
    turns: list[tuple[float, int, Request]] = []
    order = count()

    def start(when: float) -> None:
        prompt, text = prompts[author.popular(prompts)], author.text(1, 4)
        request = Request(prompt + text, [SYSTEM] * len(prompt) + [USER] * len(text))
        heapq.heappush(turns, (when, next(order), request))

    for _ in range(300):
        start(chance.uniform(0, 300))
    trace: list[Request] = []
    while len(trace) < requests:
        now, _, request = heapq.heappop(turns)
        shown = Request(request.blocks[:], request.tiers[:])
        if thinking:
            _say(shown, author.text(1, 4), ASSISTANT)
        trace.append(shown)
        if chance.random() < 0.25:
            start(now + chance.expovariate(1 / 300))
            continue
        _say(request, author.text(1, 2), ASSISTANT)
        _say(request, author.text(0, 2), USER)
        pause = chance.lognormvariate(0, 1.5) * 100
        heapq.heappush(turns, (now + pause, next(order), request))
    return trace


def rag(requests: int = 6000, seed: int = 0, drift: int = 0) -> list[Request]:
    """Questions on four hundred documents, some popular, among documents that are read once.

    With `drift`, a quarter of the documents is replaced after that many requests, again and again.
    """
    author = Author(seed)
    chance = author.random
    prompt = author.text(3, 3)
    documents = [author.text(5, 60) for _ in range(400)]
    trace: list[Request] = []
    for at in range(1, requests + 1):
        if drift and at % drift == 0:
            for gone in chance.sample(range(len(documents)), len(documents) // 4):
                documents[gone] = author.text(5, 60)
        once = chance.random() < 0.4
        text = author.text(5, 60) if once else documents[author.popular(documents, 0.8)]
        request = Request(prompt[:], [SYSTEM] * len(prompt))
        _say(request, text + author.text(1, 2), USER)
        trace.append(request)
    return trace


def mix(requests: int = 7500, seed: int = 0) -> list[Request]:
    """Agents, chats and documents in one cache, in turn."""
    each = requests // 3
    sources = [agents(each, seed + 1), chats(each, seed + 2), rag(each, seed + 3)]
    order = [source for source in range(3) for _ in range(each)]
    random.Random(seed).shuffle(order)
    waiting = [iter(source) for source in sources]
    return [next(waiting[source]) for source in order]


def shift(requests: int = 7500, seed: int = 0) -> list[Request]:
    """Documents first, then chats, then agents: what was learned is wrong twice."""
    each = requests // 3
    return rag(each, seed + 1) + chats(each, seed + 2) + agents(each, seed + 3)


def thinking(requests: int = 6000, seed: int = 0) -> list[Request]:
    """Chats with a model whose thinking is dropped from the history."""
    return chats(requests, seed, thinking=True)


def drift(requests: int = 6000, seed: int = 0) -> list[Request]:
    """Documents whose popularity changes."""
    return rag(requests, seed, drift=500)


SYNTHETIC: dict[str, Callable[[int, int], list[Request]]] = {
    maker.__name__: maker for maker in (agents, chats, thinking, rag, drift, mix, shift)
}


def _say(request: Request, blocks: list[int], tier: str) -> None:
    request.blocks.extend(blocks)
    request.tiers.extend([tier] * len(blocks))
