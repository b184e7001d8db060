"""Events of an engine, and the end of an answer; plain data, no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from ..chat.answer_parts import CallArguments, CallName, CutShort, ReasoningDelta, TextDelta
from ..chat.asked import Asked
from ..chat.generated import Generated, InvalidCall, ToolCall, nothing
from .reuse import Reuse

__all__ = [
    "Begun",
    "CallArguments",
    "CallName",
    "CutShort",
    "Event",
    "FinishReason",
    "Finished",
    "InvalidCall",
    "Loading",
    "Logprob",
    "Misfit",
    "Output",
    "Progress",
    "ReasoningDelta",
    "Reuse",
    "TextDelta",
    "Timings",
    "TokenLogprobs",
    "Usage",
]

FinishReason = Literal["stop", "length", "tool_calls"]


class Usage(NamedTuple):
    """Tokens: the prompt's, how many of them came from the cache or were run, the answer's.

    `reasoning` of the generated ones were reasoning; `accepted` of `drafted` ones that were run on
    a guess were right.
    """

    prompt: int
    cached: int
    prefilled: int
    generated: int
    reasoning: int = 0
    drafted: int = 0
    accepted: int = 0


class Timings(NamedTuple):
    """Seconds: loading the model, from the prompt to its first token, and decoding."""

    load: float
    first_token: float
    decode: float


class Loading(NamedTuple):
    """A model on its way into memory: the current stage, and the bytes `done` of `total`.

    `total` is 0 where nobody knows. Stages that are not `aloud` matter to a terminal only.
    """

    stage: str
    done: int = 0
    total: int = 0
    aloud: bool = True


class Progress(NamedTuple):
    """Tokens of the prompt that are done, those from the cache included."""

    done: int
    total: int
    cached: int


class Logprob(NamedTuple):
    """One token, the natural log of its probability, and its bytes, maybe part of a character."""

    id: int
    text: str
    logprob: float
    data: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return f"Logprob({len(self.text)} characters, {self.logprob})"


class TokenLogprobs(NamedTuple):
    """A generated token and the likeliest alternatives, itself among them if it is one."""

    chosen: Logprob
    top: tuple[Logprob, ...]


class Misfit(NamedTuple):
    """A part of its schema that an answer breaks, where no grammar could enforce it.

    `call` is the id of the call whose arguments they are, "" for the answer's document; `what` is
    a keyword and its place in the schema.
    """

    call: str
    what: str


class Begun(NamedTuple):
    """The beginning of an answer that was continued: its ids in the prompt, and its text."""

    ids: tuple[int, ...]
    text: str
    reasoning: str = ""

    def __repr__(self) -> str:
        return f"Begun({len(self.ids)} ids)"


class Finished(NamedTuple):
    """The end of an answer: its exact tokens, stop token included, and what it took.

    Where a stop string ended it (`stopped_by`), `ids` are those of the text before, or none where
    they part inside a token: a replay must say what was shown. `cut` names the call or document
    that should be whole and is not; `misfits` are the parts of their schemas that whole ones break.
    `peak_bytes` is MLX's peak memory meanwhile; `from_disk` of the cached tokens were read from the
    disk. `namespace` is where its rows went. `notes` are lines for the user: where the prompt or a
    constraint differs from what was asked. `streamed` is the text as its deltas told it, where that
    is not `text` (`Answer.streamed`). `half_call` is the call that it ended in (`Answer.half`).
    `begun` is its beginning, where it continued a message of the prompt. `reuse` says how much of
    what the conversation's last answer left was reused, and `asked` is for the record, so that the
    next turn can be told the same. `undrafted` says on a dry run why this model's answers are not
    drafted, as far as that is known; "" where they are.
    """

    ids: tuple[int, ...]
    text: str
    reason: FinishReason
    usage: Usage
    timings: Timings
    why: str
    fingerprint: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    invalid_calls: tuple[InvalidCall, ...] = ()
    cut: str = ""
    misfits: tuple[Misfit, ...] = ()
    stopped_by: str = ""
    rendered: Mapping[str, Any] = nothing()
    logprobs: tuple[TokenLogprobs, ...] = ()
    peak_bytes: int = 0
    from_disk: int = 0
    namespace: str = ""
    notes: tuple[str, ...] = ()
    streamed: str = ""
    begun: Begun = Begun((), "")
    half_call: InvalidCall | None = None
    reuse: Reuse = Reuse()
    asked: Asked | None = None
    undrafted: str = ""

    def __repr__(self) -> str:
        return f"Finished({len(self.ids)} ids, {self.reason!r}, {self.usage}, {self.why!r})"

    def generated(self, *, as_streamed: bool = False) -> Generated:
        """The record with which a later prompt replays this answer; front ends keep it.

        `as_streamed`: the history will hold what the deltas told. An answer that continued a
        message is replayed as one with it.
        """
        apart = as_streamed and bool(self.streamed)
        made = Generated.of(
            self.begun.ids + self.ids if self.ids else (),
            self.begun.text + (self.streamed if apart else self.text),
            self.fingerprint,
            reasoning=self.begun.reasoning + ("" if apart else self.reasoning),
            tool_calls=self.tool_calls,
            rendered=self.rendered,
        )
        return replace(made, asked=self.asked)

    def whole(self) -> Finished:
        """The same answer; CutShort where it ended inside what only counts as a whole."""
        if self.cut:
            raise CutShort(self.cut)
        return self


Event = (
    Loading
    | Progress
    | TextDelta
    | ReasoningDelta
    | CallName
    | CallArguments
    | InvalidCall
    | Finished
)
# One item for a request's reader: an event, an error, or None for the end.
Output = Event | BaseException | None
