"""A loaded model at work: fetch from the cache, prefill the rest, decode, give back."""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..cache.explain import Why
from ..cache.identity import namespace_of
from ..cache.layers import NotCached, cut_anywhere, layout_of
from ..cache.prompt_cache import Lease, PromptCache
from ..chat.messages import check_messages
from ..chat.transcript import Transcript, render
from .chat_tokenizer import TemplateTokenizer
from .decoding import decode, make_layers, prefill, wired
from .loading import LoadedModel
from .request import (
    Event,
    Finished,
    FinishReason,
    GenerationRequest,
    Progress,
    TextDelta,
    Timings,
    Usage,
)
from .sampling import Chooser
from .stopping import StopText

_log = logging.getLogger(__name__)

# Rows of headroom for the answer; mlx-lm's layers grow by as many at a time.
_ROOM = 256
# Layers that can't be cut are kept at least this often in a long prefill.
_CHECKPOINT = 4096
# A longer rest of a prompt is written after its answer: until then the lease has its only copy.
_BEHIND = 4096


class Running:
    """One loaded model and the cache that it fills; used on the engine's thread only.

    `identity` is the model's fingerprint, `load_seconds` what the first answer had to wait for,
    `name` what people call the model.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        identity: str,
        cache: PromptCache,
        load_seconds: float = 0.0,
        name: str = "",
    ) -> None:
        self._name = name
        self._loaded = loaded
        self._identity = identity
        self._cache = cache
        self._load_seconds = load_seconds
        self._tokenizer = TemplateTokenizer(loaded.tokenizer)
        self._uncached: str | None = None
        self._stops = False
        try:
            self._stops = not cut_anywhere(layout_of(make_layers(loaded.model)))
        except NotCached as reason:
            self._uncached = str(reason)

    def answer(
        self, request: GenerationRequest, abandoned: Callable[[], bool] = lambda: False
    ) -> Iterator[Event]:
        """The events of one answer; what was computed goes into the cache behind the last one."""
        started = time.perf_counter()
        transcript = self._transcript(request)
        ids = transcript.ids
        limit = self._limit(request, len(ids))
        namespace = namespace_of(self._identity, request.salt)
        self._cache.label(namespace, self._name)
        lease = self._lease(request, namespace, ids, limit)
        layers = lease.layers or make_layers(self._loaded.model)
        work = _Work(request, namespace, transcript, lease, layers)
        places = self._places(work)
        held = lease.cached
        try:
            with wired(self._loaded.model):
                for held in prefill(self._loaded.model, layers, ids, lease.cached, places):
                    yield Progress(held, len(ids), lease.cached)
                    if held in places:
                        self._keep(work, held)
                    if abandoned():
                        break
                else:
                    self._write_behind(work, held)
                    chooser = Chooser(request.sampling, ids, list(self._tokenizer.stop_ids))
                    tokens = decode(self._loaded.model, layers, ids[-1], chooser, limit)
                    yield from self._decode(work, tokens, started, abandoned)
                    held = len(ids) + len(work.generated)
        except BaseException:
            self._rescue(work, held)
            raise
        self._keep(work, held, last=True)

    def settle(self, last: bool = False) -> None:
        """Have the disk written what this model's answers left to write; wait if it is the last.

        A short answer waits in memory, so that it becomes part of the next turn's file.
        """
        self._cache.flush(wait=last, short=last)

    def _decode(
        self,
        work: _Work,
        tokens: Iterator[int],
        started: float,
        abandoned: Callable[[], bool],
    ) -> Iterator[Event]:
        """Text as its tokens come, then `Finished`; the tokens are left in `work`."""
        detokenizer = self._loaded.tokenizer.detokenizer
        stopping = StopText(work.request.stop)
        first = 0.0
        reason: FinishReason = "length"
        texts: list[str] = []
        for token in tokens:
            first = first or time.perf_counter()
            work.generated.append(token)
            if token in self._tokenizer.stop_ids:
                reason = "stop"
                break
            detokenizer.add_token(token)
            if segment := stopping.feed(detokenizer.last_segment):
                texts.append(segment)
                yield TextDelta(segment)
            if stopping.hit:
                break
            if abandoned():
                return
        detokenizer.finalize()
        if segment := stopping.feed(detokenizer.last_segment) + stopping.rest():
            texts.append(segment)
            yield TextDelta(segment)
        if stopping.hit:
            reason = "stop"
        load, self._load_seconds = self._load_seconds, 0.0
        lease, prompt = work.lease, len(work.transcript.ids)
        yield Finished(
            ids=self._replayable(work.generated, "".join(texts), stopping.hit),
            text="".join(texts),
            reason=reason,
            usage=Usage(prompt, lease.cached, prompt - lease.cached, len(work.generated)),
            timings=Timings(load, first - started, time.perf_counter() - first),
            why=str(lease.why),
            fingerprint=self._identity,
        )

    def _replayable(self, generated: list[int], text: str, cut: bool) -> tuple[int, ...]:
        """The ids that say what was shown: without a stop string's, or none where they can't."""
        if not cut:
            return tuple(generated)
        # Ids whose text is all shown come first; one that holds the edge can't be divided.
        for count in range(len(generated), -1, -1):
            said = self._tokenizer.decode(generated[:count])
            if len(said) <= len(text):
                return tuple(generated[:count]) if said == text else ()
        return ()

    def _transcript(self, request: GenerationRequest) -> Transcript:
        check_messages(request.messages)
        return render(request.messages, self._tokenizer, fingerprint=self._identity)

    def _limit(self, request: GenerationRequest, prompt: int) -> int:
        """How many tokens the answer may have; ValueError where the prompt leaves none."""
        context = self._loaded.context_length
        if context is None:
            return request.max_tokens
        if prompt >= context:
            raise ValueError(
                f"the prompt has {prompt} tokens and the model's context holds {context};"
                " shorten the prompt or use a model with a longer context"
            )
        return min(request.max_tokens, context - prompt)

    def _lease(
        self, request: GenerationRequest, namespace: str, ids: array[int], limit: int
    ) -> Lease:
        if not request.use_cache:
            return Lease(None, 0, Why("off"))
        if self._uncached is not None:
            return Lease(None, 0, Why("layers", detail=self._uncached))
        # One request at a time runs here, so nobody else needs what this one takes.
        return self._cache.fetch(namespace, ids, room=min(limit, _ROOM), take=True)

    def _places(self, work: _Work) -> set[int]:
        """Where prefill must stop: layers that can't be cut are kept where they were taken."""
        if not self._stops or not work.request.use_cache:
            return set()
        places = {boundary.position for boundary in work.transcript.boundaries}
        every = range(_CHECKPOINT, len(work.transcript.ids), _CHECKPOINT)
        return places | {work.lease.matched} | set(every)

    def _keep(self, work: _Work, done: int, last: bool = False) -> None:
        """Insert what `done` tokens of the path made complete, each message under its tier."""
        if not work.request.use_cache or self._uncached is not None or not done:
            return
        path = work.transcript.ids + array("I", work.generated)
        passed = [b for b in work.transcript.boundaries if work.kept < b.position <= done]
        ends = [(boundary.position, boundary.tier) for boundary in passed]
        if not ends or ends[-1][0] < done:
            ends.append((done, "assistant"))
        for number, (end, tier) in enumerate(ends, 1):
            consume = last and number == len(ends)
            self._cache.insert(
                work.namespace,
                path[:end],
                work.layers,
                tier,
                consume=consume,
                on_disk=work.request.on_disk,
            )
        work.kept = done

    def _write_behind(self, work: _Work, done: int) -> None:
        """Have the prompt written while the answer comes, where its rows may be held twice."""
        if work.request.on_disk and done - work.lease.cached <= _BEHIND and self._cache.saves:
            self._keep(work, done)
            self._cache.flush(wait=False, short=False)

    def _rescue(self, work: _Work, held: int) -> None:
        """After an error: bring home what the lease took from the cache, as far as it is whole."""
        try:
            self._keep(work, held, last=True)
        except Exception as error:
            _log.warning("what a failed request had taken from the cache is lost: %s", error)


@dataclass
class _Work:
    """One answer on its way."""

    request: GenerationRequest
    namespace: str
    transcript: Transcript
    lease: Lease
    layers: list[Any]
    generated: list[int] = field(default_factory=list)
    kept: int = 0
