"""One answer as it comes: tokens -> text, reasoning and calls, then its summary."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..cache.memory.leases import Lease
from ..chat.answer_parts import Answer
from ..chat.asked import Asked, path_digests
from ..chat.channel_parser import parser_of
from ..chat.history import digest_of_messages, entry_of
from ..chat.messages import Message
from ..models.chat_tokenizer import TemplateTokenizer
from .checking import misfits_of
from .events import Begun, Event, Finished, FinishReason, Timings, TokenLogprobs, Usage
from .preparation import Prepared
from .reuse import Reuse, reuse_of, rows_digest
from .stopping import StopText


class Measured(NamedTuple):
    """Measurements that only the model's runner has: times in seconds, tokens, bytes."""

    started: float
    load: float
    cached: int
    why: str
    fingerprint: str
    peak_bytes: int
    from_disk: int = 0
    reuse: Reuse = Reuse()
    drafted: int = 0
    accepted: int = 0


def looked(prepared: Prepared, lease: Lease, fingerprint: str, undrafted: str = "") -> Finished:
    """The report on a prompt that nobody answers: what it would reuse."""
    prompt = len(prepared.transcript.ids)
    return Finished(
        ids=(),
        text="",
        reason="stop",
        usage=Usage(prompt, lease.cached, prompt - lease.cached, 0),
        timings=Timings(0.0, 0.0, 0.0),
        why=str(lease.why),
        fingerprint=fingerprint,
        from_disk=lease.from_disk,
        namespace=prepared.namespace,
        notes=prepared.notes,
        reuse=reuse_of(prepared, lease),
        undrafted=undrafted,
    )


class AnswerStream:
    """A stream that takes tokens and yields events until the answer has ended (`ended`)."""

    def __init__(self, prepared: Prepared, tokenizer: TemplateTokenizer) -> None:
        self._prepared = prepared
        self._tokenizer = tokenizer
        request = prepared.request
        self._before: Sequence[int] = prepared.transcript.ids if request.continue_final else ()
        self._detokenizer = tokenizer.text.detokenizer(self._before)
        self._stopping = StopText(request.stop)
        self._parser = parser_of(
            prepared.form,
            request.tools,
            grammar=prepared.grammar,
            thinking=prepared.thinking,
            most=request.max_calls,
            continued=request.continue_final,
        )
        self._raw: list[str] = []
        self._logprobs: list[TokenLogprobs] = []
        self._first = 0.0
        self._reasoning = 0
        self._reason: FinishReason = "length"
        self.ids: array[int] = array("I")
        self.ended = False

    @property
    def left(self) -> int:
        """The number of tokens that the answer may still have."""
        return self._prepared.limit - len(self.ids)

    def take(self, token: int, logprobs: TokenLogprobs | None = None) -> Iterator[Event]:
        """The events that one token completes; sets `ended` with the last one."""
        self._first = self._first or time.perf_counter()
        self.ids.append(token)
        if logprobs is not None:
            self._logprobs.append(logprobs)
        self.ended = not self.left
        if token in self._tokenizer.stop_ids:
            self._reason, self.ended = "stop", True
            return
        self._reasoning += self._parser.reasons
        yield from self._show(self._detokenizer.add(token))

    def finish(self, measured: Measured, *, whole: bool) -> Iterator[Event]:
        """The events that still wait, then `Finished`; `whole`: a grammar could end here."""
        yield from self._show(self._detokenizer.finish(), last=True)
        whole = whole if self._prepared.grammar is not None else self._reason == "stop"
        parts, answer = self._parser.finish(whole=whole and not self._stopping.hit)
        yield from parts
        yield self._finished(answer, measured)

    def _show(self, text: str, *, last: bool = False) -> Iterator[Event]:
        shown = self._stopping.feed(text) + (self._stopping.rest() if last else "")
        if self._stopping.hit:
            self._reason, self.ended = "stop", True
        if shown:
            self._raw.append(shown)
            yield from self._parser.feed(shown)
        if self._parser.full and not self.ended:
            self._reason, self.ended = "stop", True

    def _finished(self, answer: Answer, measured: Measured) -> Finished:
        timings = self._timings(measured)  # before all that sums up
        whole_calls = answer.calls and answer.cut is None
        return Finished(
            ids=self._replayable(),
            text=answer.text,
            reason="tool_calls" if whole_calls else self._reason,
            usage=self._usage(measured),
            timings=timings,
            why=measured.why,
            fingerprint=measured.fingerprint,
            reasoning=answer.reasoning,
            tool_calls=answer.calls,
            invalid_calls=answer.invalid,
            cut="" if answer.cut is None else answer.cut.what,
            misfits=misfits_of(answer, self._prepared.request, self._prepared.grammar),
            stopped_by=self._stopping.stopped_by,
            rendered=self._prepared.transcript.rendered,
            logprobs=tuple(self._logprobs),
            peak_bytes=measured.peak_bytes,
            from_disk=measured.from_disk,
            namespace=self._prepared.namespace,
            notes=self._prepared.notes,
            streamed=answer.streamed,
            begun=self._begun(),
            half_call=answer.half,
            reuse=measured.reuse,
            asked=self._asked(answer, measured.reuse),
        )

    def _usage(self, measured: Measured) -> Usage:
        # The last token of a warmed prompt is never run.
        prompt = len(self._prepared.transcript.ids) - self._prepared.request.warm
        return Usage(
            prompt,
            measured.cached,
            prompt - measured.cached,
            len(self.ids),
            self._reasoning,
            measured.drafted,
            measured.accepted,
        )

    def _timings(self, measured: Measured) -> Timings:
        now = time.perf_counter()
        first = self._first or now
        return Timings(measured.load, first - measured.started, now - first)

    def _asked(self, answer: Answer, reuse: Reuse) -> Asked | None:
        """The record that tells a later turn what this one had; None if nothing of it is kept."""
        prepared = self._prepared
        if reuse.state == "off" or prepared.request.warm:
            return None
        history, transcript = prepared.history, prepared.transcript
        path = transcript.ids + array("I", self._replayable()[:-1])
        digests = path_digests(path, (transcript.stays, len(path)))
        thought = Message("assistant", answer.text, tool_calls=answer.calls)
        messages = history.messages
        if prepared.request.continue_final:
            # The message that it continues is its own beginning, not one before it.
            messages = digest_of_messages(prepared.request.messages[:-1])
        return Asked(
            messages,
            history.tools,
            rows_digest(prepared),
            transcript.stays,
            digests[transcript.stays],
            len(path),
            digests[len(path)],
            entry_of(thought) if answer.reasoning or self._thinks_in_prompt() else "",
            history.told or bool(reuse.warns),
        )

    def _thinks_in_prompt(self) -> bool:
        """True if the prompt's end, which no later prompt shows, has marks of thinking."""
        thinking, transcript = self._prepared.thinking, self._prepared.transcript
        if thinking is None:
            return False
        return thinking.end in self._tokenizer.decode(transcript.ids[transcript.stays :])

    def _begun(self) -> Begun:
        """The text that this answer went on with, where the prompt's last ids are exactly that."""
        transcript = self._prepared.transcript
        if not transcript.begun:
            return Begun((), "")
        last = self._prepared.request.messages[-1]
        return Begun(tuple(transcript.ids[-transcript.begun :]), last.content, last.reasoning)

    def _replayable(self) -> tuple[int, ...]:
        """The ids that say what was shown: without a stop string's, or none where they can't."""
        if not (self._stopping.hit or self._parser.spare):
            return tuple(self.ids)
        raw = "".join(self._raw)
        raw = raw[: len(raw) - self._parser.spare]
        return tuple(self._tokenizer.text.ids_of_start(self.ids, raw, self._before) or ())
