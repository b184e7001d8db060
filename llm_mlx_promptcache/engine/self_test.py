"""A model beside itself on this machine: what memory, the disk and batches change of its answers.

Few tokens of a text of our own, in a cache that is made for it. The same chunks give the same bits,
or something is wrong. Other chunks are other sizes of matrices, for which a device has other
kernels: there two ways to compute one prompt without any cache are the measure.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import mlx.core as mx

from ..cache import device
from ..cache.disk.store import DiskStore
from ..cache.layers.layout import NotCached, cut, layout_of, nbytes
from ..cache.layers.pieces import Piece
from ..cache.memory.leases import Lease
from ..cache.prompt_cache import PromptCache
from ..models.layers import coarsest_dtype, make_layers
from ..models.loading import LoadedModel
from .batch_layers import BatchForm, extend, merge
from .batch_probe import prove
from .forward import forward, prefill
from .measurements import (
    Apart,
    BatchBesideAlone,
    Measurement,
    NotFound,
    NotInTime,
    NotKept,
    RestoreBesideMemory,
    Speeds,
    WarmBesideCold,
)
from .nearness import distance, most_rounding, rounding_of, same, same_rows

WARM: Final = "warm beside cold"
RESTORED: Final = "restored beside memory"
TOGETHER: Final = "together beside alone"

_RULE = "Rule {n}: whoever borrows book {n} brings it back to shelf {m} before day {d}.\n"
_SIZES: Final = (512, 256, 128, 64)  # tokens of a prompt: the first that is computed in time
_PASS_SECONDS: Final = 2.0  # that a prompt may take, and an answer too
_LEAST_PROMPT: Final = 8  # tokens, of which the cache has some and others follow
_FIRST_PASS: Final = 16  # tokens, by which the speed is told
_CHUNKS: Final = 8  # that a prompt is computed in otherwise
_LEAST_ANSWER, _MOST_ANSWER = 4, 16  # tokens
_ROWS: Final = (8, 6, 4)  # of a batch: prompts of such parts of the whole
_NAMESPACE: Final = "self-test"
_MEMORY: Final = "2GB"


class SelfTest:
    """One model's. `folder` is an empty one for its spans; no part begins after `until`."""

    def __init__(
        self,
        loaded: LoadedModel,
        folder: Path,
        until: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = loaded.model
        self._folder = folder
        self._until = until
        self._clock = clock
        self._ids, self._answered = self._sizes(loaded)
        self._kept = len(self._ids) * 3 // 4  # tokens of it that the cache is given
        self._cache = PromptCache(_MEMORY, DiskStore(folder, _MEMORY))

    def measurements(self) -> Iterator[Measurement]:
        """All parts, one after the other; what is not begun in time is left out by name."""
        trial, speeds = self._computed()
        yield speeds
        if not speeds.finite:  # nothing can be beside it
            return
        why = _not_kept(make_layers(self._model))
        if why:
            yield NotKept(why)
        elif self._is_over():
            yield from (NotInTime(WARM), NotInTime(RESTORED))
        else:
            warm, measured = self._warm(trial)
            yield measured
            if warm is not None:
                yield NotInTime(RESTORED) if self._is_over() else self._restored(warm)
        yield NotInTime(TOGETHER) if self._is_over() else self._together(trial)

    def close(self) -> None:
        """Let go of the folder, once what is on its way there is written."""
        self._cache.flush()

    def _is_over(self) -> bool:
        return self._clock() >= self._until

    def _sizes(self, loaded: LoadedModel) -> tuple[list[int], int]:
        """A prompt as long as this model computes in time, and the length of its answer."""
        text = "".join(
            _RULE.format(n=n, m=n * 7 % 31, d=n * 11 % 28 + 1) for n in range(1, _SIZES[0] // 4)
        )
        ids = [int(token) for token in loaded.tokenizer.encode(text)]
        for _ in range(2):  # the first one reads weights and makes kernels
            layers = make_layers(self._model)
            began = self._clock()
            prefill(self._model, layers, ids[:_FIRST_PASS])
            done = self._clock()
            self._step(layers, ids[:1])
            ended = self._clock()
        each, step = (done - began) / _FIRST_PASS, max(ended - done, 1e-9)
        most = max(_LEAST_PROMPT, (loaded.context_length or _SIZES[0] * 2) // 2)
        most = min(most, len(ids))
        sizes = [size for size in _SIZES if size <= most]
        in_time = [size for size in sizes if size * each <= _PASS_SECONDS]
        answered = min(max(int(_PASS_SECONDS / step), _LEAST_ANSWER), _MOST_ANSWER)
        return ids[: (in_time or sizes[-1:] or [most])[0]], answered

    def _computed(self) -> tuple[_ColdTrial, Speeds]:
        """The prompt without any cache, in several chunks and in one go."""
        last = len(self._ids) - 1
        size = max(1, last // _CHUNKS)
        in_chunks = self._pass(make_layers(self._model), 0, range(size, last, size))
        layers = make_layers(self._model)
        began = self._clock()
        prefill(self._model, layers, self._ids[:last])
        done = self._clock()
        logits = self._behind(layers)
        first = self._clock()
        tokens = self._answer(layers, logits)
        ended = self._clock()
        cold = _PassOf(logits, tokens)
        rounding = _apart(in_chunks, cold)
        trial = _ColdTrial(cold, rounding, rounding_of(rounding.logits, logits))
        prefilled, decoded = (
            last / max(done - began, 1e-9),
            self._answered / max(ended - first, 1e-9),
        )
        dtype = str(logits.dtype).removeprefix("mlx.core.")
        # Some models forbid tokens by infinite logits; none has logits that are no numbers.
        finite = bool((mx.isfinite(logits).any() & ~mx.isnan(logits).any()).item())
        return trial, Speeds(dtype, len(self._ids), prefilled, decoded, finite)

    def _warm(self, trial: _ColdTrial) -> tuple[_WarmTrial | None, Measurement]:
        """The prompt behind rows from memory, beside the run that they are of, and beside cold."""
        layers = make_layers(self._model)
        began = self._clock()
        prefill(self._model, layers, self._ids[: self._kept])
        seconds = self._clock() - began
        self._cache.insert(_NAMESPACE, self._ids[: self._kept], layers, "user")
        stored = self._pass(layers, self._kept)
        lease = self._cache.fetch(_NAMESPACE, self._ids, self._answered)
        if lease.layers is None or lease.cached != self._kept:
            return None, NotFound(WARM, lease.cached, self._kept, str(lease.why))
        rows = self._rows(lease)
        warm = self._pass(lease.layers, lease.cached)
        same, again = _apart(warm, stored), None
        if not same.same_bits:
            layers = make_layers(self._model)
            prefill(self._model, layers, self._ids[: self._kept])
            again = _apart(self._pass(layers, self._kept), stored)
        measured = WarmBesideCold(
            len(self._ids),
            lease.cached,
            same,
            again,
            _apart(warm, trial.cold),
            trial.rounding,
            trial.most,
            most_rounding(trial.cold.logits, coarsest_dtype(self._model)),
        )
        return _WarmTrial(rows, warm, seconds), measured

    def _restored(self, warm: _WarmTrial) -> Measurement:
        """The same rows from the disk, as another process would read them."""
        self._cache.flush()
        other = PromptCache(_MEMORY, DiskStore(self._folder, _MEMORY))
        began = self._clock()
        lease = other.fetch(_NAMESPACE, self._ids, self._answered)
        if lease.layers is None or not lease.from_disk == lease.cached == self._kept:
            return NotFound(RESTORED, lease.cached, self._kept, str(lease.why))
        rows = self._rows(lease)
        seconds = self._clock() - began
        return RestoreBesideMemory(
            lease.cached,
            nbytes(rows),
            seconds,
            warm.seconds,
            same_rows(rows, warm.rows),
            _apart(self._pass(lease.layers, lease.cached), warm.ran),
        )

    def _together(self, trial: _ColdTrial) -> Measurement:
        """Answers of three prompts whose steps are one batch's, beside each alone."""
        verdict = prove(self._model)
        nothing = Apart(0.0, same_bits=True, same_tokens=True)
        if verdict.form is BatchForm.ALONE:
            return BatchBesideAlone(0, nothing, trial.most, verdict.why)
        held, alone = [], []
        for part in _ROWS:
            layers, count = make_layers(self._model), max(2, len(self._ids) // part)
            prefill(self._model, layers, self._ids[: count - 1])
            held.append(copy.deepcopy(layers))
            alone.append(self._steps(layers, [self._ids[count - 1]]))
        batch = merge(held[0], held[1], verdict.form)
        for layers in held[2:]:
            extend(batch, layers)
        said = [[ids[step] for ids, _ in alone] for step in range(self._answered)]
        logits = [self._step(batch, tokens) for tokens in said]
        right = [
            mx.concatenate([rows[step] for _, rows in alone]) for step in range(self._answered)
        ]
        pairs = list(zip(logits, right, strict=True))
        apart = Apart(
            max(distance(*pair) for pair in pairs),
            same_bits=all(same(*pair) for pair in pairs),
            same_tokens=all(same(mx.argmax(a, -1), mx.argmax(b, -1)) for a, b in pairs),
        )
        return BatchBesideAlone(len(_ROWS), apart, trial.most)

    def _pass(self, layers: list[Any], start: int, stops: Sequence[int] = ()) -> _PassOf:
        """Run the rest of the prompt from `start` on, in chunks that end at `stops`, and answer."""
        for stop in (*stops, len(self._ids) - 1):
            if stop > start:
                prefill(self._model, layers, self._ids[start:stop])
                start = stop
        logits = self._behind(layers)
        return _PassOf(logits, self._answer(layers, logits))

    def _behind(self, layers: list[Any]) -> mx.array:
        """Logits [1, vocab_size] behind the prompt, whose last token is run for them."""
        return self._step(layers, self._ids[-1:])

    def _step(self, layers: list[Any], tokens: Sequence[int]) -> mx.array:
        """Logits [requests, vocab_size] behind a token of each request."""
        with device.work():
            logits = forward(self._model, layers, mx.array([[token] for token in tokens]))
            mx.eval(logits)
        return logits

    def _steps(self, layers: list[Any], tokens: list[int]) -> tuple[list[int], list[mx.array]]:
        """The tokens that were run, the first given and the others chosen, and logits of each."""
        found = []
        for _ in range(self._answered):
            found.append(self._step(layers, tokens[-1:]))
            tokens.append(cast("int", mx.argmax(found[-1]).item()))
        return tokens, found

    def _answer(self, layers: list[Any], logits: mx.array) -> list[int]:
        """The greedy answer behind logits; no step waits for the token of the one before."""
        said = []
        with device.work():
            for _ in range(self._answered):
                said.append(mx.argmax(logits, axis=-1))
                logits = forward(self._model, layers, said[-1][:, None])
                mx.async_eval(logits)  # type: ignore[no-untyped-call]
            mx.eval(logits)
        return [cast("int", token.item()) for token in said]

    def _rows(self, lease: Lease) -> list[Piece | None]:
        """The pieces that layers hold of the tokens they were leased with, computed."""
        assert lease.layers is not None
        pieces = cut(layout_of(lease.layers), lease.layers, lease.cached, 0, lease.cached)
        mx.eval([array for piece in pieces if piece is not None for array in piece])
        return pieces


class _PassOf(NamedTuple):
    """A run of the prompt: logits [1, vocab_size] behind it, and a greedy answer."""

    logits: mx.array
    tokens: list[int]


class _ColdTrial(NamedTuple):
    """The prompt in one go, how far other chunks are from it, and how much is rounding."""

    cold: _PassOf
    rounding: Apart
    most: float


class _WarmTrial(NamedTuple):
    """Rows that came from memory, what ran behind them, and seconds to compute them."""

    rows: list[Piece | None]
    ran: _PassOf
    seconds: float


def _not_kept(layers: Sequence[Any]) -> str:
    """The reason for which nothing of such layers is kept; "" where it is."""
    try:
        layout_of(layers)
    except NotCached as reason:
        return str(reason)
    return ""


def _apart(one: _PassOf, other: _PassOf) -> Apart:
    far = distance(one.logits, other.logits)
    return Apart(far, same(one.logits, other.logits), one.tokens == other.tokens)
