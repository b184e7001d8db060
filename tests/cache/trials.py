"""The trial of a family by law 1: warm runs beside cold ones, on paths kept as an engine would.

Used by test_families.py and by benchmarks/matrix.py.
"""

import gc
import random
from collections.abc import Sequence
from typing import Any

import families
import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from llm_mlx_promptcache.cache.layers.layout import cut_anywhere, layout_of
from llm_mlx_promptcache.cache.memory.leases import Lease
from llm_mlx_promptcache.cache.prompt_cache import PromptCache

NAMESPACE = "m"
STOPS = (13, 30, 45, 60)  # where messages end; the first span is longer than a window (8)
POINTS = (1, 7, 8, 9, 12, 13, 14, 20, 21, 22, 29, 30, 31, 38, 45, 52, 59, 60)


def words(seed: int, count: int) -> list[int]:
    """Random tokens."""
    return random.Random(seed).choices(range(families.VOCAB_SIZE), k=count)


PATH = words(1, STOPS[-1])


class Trial:
    """One model, run warm and cold."""

    def __init__(
        self, family: Any, quantized: int | None = None, max_kv_size: int | None = None
    ) -> None:
        self.family = family
        self.quantized = quantized
        self.max_kv_size = max_kv_size
        self.model = family.build()
        self.tolerance = 1e-2 if quantized else 1e-4
        self.worst = 0.0

    def layers(self) -> list[Any]:
        """New layers of the model, empty."""
        made = make_prompt_cache(self.model, self.max_kv_size)
        if self.quantized:
            return [layer.to_quantized(group_size=32, bits=self.quantized) for layer in made]
        return made

    def run(self, tokens: Sequence[int], layers: list[Any]) -> mx.array:
        """The logits after each token, evaluated."""
        logits = self.model(mx.array([list(tokens)]), cache=layers)[0]
        mx.eval(logits)
        return logits

    def anywhere(self) -> bool:
        """True if paths of this model can be resumed at every token."""
        return cut_anywhere(layout_of(self.layers()))

    def keep(
        self, cache: PromptCache, path: Sequence[int], stops: Sequence[int] = STOPS
    ) -> list[Any]:
        """Prefill a path as an engine does: from a lease, stopping and inserting at boundaries."""
        lease = cache.fetch(NAMESPACE, path)
        layers, done = lease.layers or self.layers(), lease.cached
        # Where paths were seen to part, a checkpoint serves the next one that parts there.
        ends = sorted({*stops, lease.matched, len(path)})
        for end in ends:
            if done < end <= len(path):
                self.run(path[done:end], layers)
                cache.insert(NAMESPACE, path[:end], layers, "user")
                done = end
        return layers

    def check(
        self, lease: Lease, prompt: Sequence[int], count: int = 16, ends: Sequence[int] = STOPS
    ) -> tuple[list[int], list[Any]]:
        """Answer from a lease, and hold logits and greedy tokens against a cold run.

        Returns the answer and the layers, which have seen the prompt and all of it.

        The cold run takes prompt and answer in one chunk: law 1 at its strictest. A model whose
        own answer depends on the chunks is run in the same ones.
        """
        layers = lease.layers or self.layers()
        answer: list[int] = []
        warm = [self.run(prompt[lease.cached :], layers)[-1]]
        for _ in range(count - 1):
            answer.append(int(mx.argmax(warm[-1]).item()))
            warm.append(self.run(answer[-1:], layers)[-1])
        whole = [*prompt, *answer]
        chunks = [len(whole)]
        if self.family.chunked:
            before = [end for end in ends if end < lease.cached]
            chunks = [*before, lease.cached, *range(len(prompt), len(whole) + 1)]
        self._compare(mx.stack(warm), self.cold(whole, chunks)[len(prompt) - 1 :], lease, prompt)
        return answer, layers

    def cold(self, tokens: Sequence[int], ends: Sequence[int]) -> mx.array:
        """The logits after each token, computed in chunks with these ends, on nothing cached."""
        layers, done, logits = self.layers(), 0, []
        for end in ends:
            if end > done:
                logits.append(self.run(tokens[done:end], layers))
                done = end
        return mx.concatenate(logits)

    def _compare(self, warm: mx.array, cold: mx.array, lease: Lease, prompt: Sequence[int]) -> None:
        # Equal infinities (tokens that a model forbids) are no difference, though theirs is NaN.
        worst = mx.where(warm == cold, 0.0, mx.abs(warm - cold)).max().item()
        self.worst = max(self.worst, worst)
        where = f"{self.family.name}, {lease.cached} of {len(prompt)} tokens cached"
        assert worst <= self.tolerance, f"{where}: logits differ by {worst:.1e}"
        same = mx.array_equal(mx.argmax(warm, axis=-1), mx.argmax(cold, axis=-1)).item()
        assert same, f"{where}: other greedy tokens"


def points_hold(
    trial: Trial, cache: PromptCache, points: Sequence[int] = POINTS, count: int = 8
) -> None:
    """At each point a prompt leaves the kept path; the resumed one answers as a cold run does."""
    for point in points:
        prompt = [*PATH[:point], *_other(point)]
        lease = cache.fetch(NAMESPACE, prompt, headroom=count)
        least = point if trial.anywhere() else max((s for s in STOPS if s <= point), default=0)
        assert least <= lease.cached <= point, f"{lease.cached} tokens cached at {point}"
        trial.check(lease, prompt, count)


def _other(point: int) -> list[int]:
    """Tokens that don't go on as the kept path does."""
    tail = words(100 + point, 5)
    if point < len(PATH) and tail[0] == PATH[point]:
        tail[0] = (tail[0] + 1) % families.VOCAB_SIZE
    return tail


def stored(cache: PromptCache) -> list[tuple[mx.array, bytes]]:
    """Every array that is kept, with its bytes as they are now."""
    spans = [node.value for node in cache._tree.nodes()]
    arrays = [a for span in spans for piece in span.pieces for a in piece or () if a is not None]
    return [(array, np.array(array).tobytes()) for array in arrays]


def unchanged(before: Sequence[tuple[mx.array, bytes]]) -> bool:
    """True if the arrays still hold these bytes (law 9)."""
    return all(np.array(array).tobytes() == held for array, held in before)


def excess(cache: PromptCache) -> float:
    """The bytes kept alive by the spans, in multiples of their `nbytes`: all are dropped to see."""
    said = cache.stats()["memory"]["bytes"]
    arrays = len(stored(cache))
    gc.disable()  # what others left to the collector must not be counted
    try:
        before = mx.get_active_memory()
        cache.clear()
        freed = before - mx.get_active_memory()
    finally:
        gc.enable()
    return (freed - 256 * arrays) / said  # the allocator's own rounding is no fault of ours
