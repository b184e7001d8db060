"""Holds the logits of one answer to a grammar, with llguidance's matcher.

    tokenizer = grammar_tokenizer(wrapper, vocab_size)          # once a model
    matchers = Matchers(tokenizer)                         # the same
    constraint = Constraint(matchers, grammar, vocab_size)      # once an answer; GrammarError
    logits = constraint.mask(logits)                       # before every choice
    constraint.consume(token)                              # after it
    tokens = constraint.forced()                           # what follows without any choice

A mask depends on the token before it, the pass over that token does not. So the matcher's work
hides behind the model's, whose logits are on their way (`mx.async_eval`) before they are masked.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum, auto
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from llguidance import LLTokenizer
from llguidance.hf import from_tokenizer

from ..chat.call_forms import Thinking
from ..chat.grammar import Grammar, GrammarError
from ..models.errors import ConstraintError, NothingAllowedError
from .matchers import Matcher, Matchers

__all__ = ["Constraint", "ConstraintError", "Matchers", "grammar_tokenizer"]

_REASON_LIMIT = 200


def grammar_tokenizer(wrapper: Any, vocab_size: int) -> LLTokenizer:
    """The view of mlx-lm's `TokenizerWrapper` for llguidance, of `vocab_size` columns; keep it.

    Takes most of a second for a vocabulary of 50,000. GrammarError if there is no such view.
    """
    inner = wrapper._tokenizer  # the wrapper itself is no tokenizer to llguidance
    try:
        return from_tokenizer(inner, max(vocab_size, len(inner)), eos_token=_end_ids(wrapper))
    except ValueError as error:
        raise GrammarError(
            f"this model's tokenizer can't be held to a grammar: {str(error)[:_REASON_LIMIT]};"
            " ask for plain text, or use a model with a fast tokenizer"
        ) from None


def _end_ids(wrapper: Any) -> list[int]:
    """All tokens that end an answer, the one that chat templates write first."""
    ends = sorted(int(token) for token in wrapper.eos_token_ids)
    own = wrapper._tokenizer.eos_token_id
    return [own, *(token for token in ends if token != own)] if own in ends else ends


# White space that models write before their reasoning, and between it and the answer that the
# grammar holds, in tokens.
_MOST_GAP = 2


class Allowed(NamedTuple):
    """The tokens that may come next, packed in bits where the device unpacks them."""

    tokens: mx.array | np.ndarray[Any, Any]

    def applied(self, logits: mx.array) -> mx.array:
        """The logits, [1, vocab_size], with minus infinity for the other tokens."""
        if isinstance(self.tokens, mx.array):
            return _where(self.tokens, logits)
        return _metal(self.tokens, logits)


class _Phase(Enum):
    """The grammar's hold on what comes next."""

    WAITING = auto()  # for the end of reasoning: all but the answer's end may come
    FIRST = auto()  # it holds how the answer begins, where reasoning may begin too
    HOLDING = auto()
    ENDED = auto()


class _Waiting(NamedTuple):
    """The progress of the mark that ends reasoning, and what may be the beginning of a call."""

    tail: bytes
    heard: bytes
    gap: int


class Constraint:
    """The grammar's hold on one answer; with `thinking` it begins where reasoning ends.

    It waits for that end, or for the mark that begins a call.
    """

    def __init__(
        self,
        matchers: Matchers,
        grammar: Grammar,
        vocab_size: int,
        *,
        thinking: Thinking | None = None,
    ) -> None:
        self._matcher = Matcher(matchers, grammar)
        self._tokenizer = tokenizer = matchers.tokenizer
        self._vocab_size = vocab_size
        # Tokens of white space that may yet stand before reasoning, or behind it.
        self._gap = _MOST_GAP if thinking is not None and thinking.start_ids else 0
        self._ends = list(tokenizer.eos_tokens)
        self._end_mask = _mask_of(self._ends, vocab_size)
        self._all_but_end = ~self._end_mask
        self._thinking = thinking
        waits = thinking is not None and thinking.opened
        self._phase = _Phase.WAITING if waits else _Phase.FIRST
        self._tail = b""  # may be the beginning of the mark behind reasoning
        # The mark of a call, and the end of the text heard while waiting for it.
        self._opening, self._heard = grammar.opening.encode(), b""
        self._guessed: list[_Waiting] = []  # where it stood before each guess while it waited
        self._broken = False  # a guess was too much for the matcher: there are no more
        self._unclear = 0  # tokens that may begin reasoning, and that the grammar allows too

    @property
    def _holds(self) -> bool:
        return self._phase in (_Phase.FIRST, _Phase.HOLDING)

    @property
    def finished(self) -> bool:
        """True if only the end can follow."""
        return self._phase is _Phase.ENDED or (self._holds and self._matcher.is_stopped)

    @property
    def complete(self) -> bool:
        """True if the answer may end here: it is whole, even if a limit ends it."""
        if self._holds:
            return self._matcher.is_accepting
        return self._phase is _Phase.ENDED

    def mask(self, logits: mx.array) -> mx.array:
        """The logits, [1, vocab_size], with minus infinity for tokens that can't follow."""
        return self.allowed().applied(logits)

    def allowed(self) -> Allowed:
        """The tokens that may come next, as it stands now."""
        if self._phase is _Phase.WAITING:
            # An end here would leave out what must follow the reasoning, and nobody would know.
            return Allowed(self._all_but_end)
        if self.finished:
            return Allowed(self._end_mask)
        bits = self._matcher.bits()
        if self._matcher.failed or not bits.any():
            raise ConstraintError(f"the grammar can't go on: {self._matcher.reason}; simplify it")
        bits = _with(bits, self._besides())
        return Allowed(bits if _on_metal() else _unpacked(bits, self._vocab_size))

    @property
    def can_go_back(self) -> bool:
        """True if tokens consumed now may be taken back.

        The grammar then holds all of them, or none while it waits.
        """
        if self._phase is _Phase.WAITING:
            return True
        holds = self._phase is _Phase.HOLDING and not self._gap
        return holds and not self._broken and not self._matcher.is_stopped

    def try_consume(self, token: int) -> bool:
        """Consume a guess if the grammar allows it; `go_back` undoes it."""
        if token in self._ends:
            return False
        if self._phase is _Phase.WAITING:
            return self._try_wait(token)
        if self._takes([token]) and self._matcher.consume(token):
            return True
        if self._matcher.failed:
            self._undo(0)
        return False

    def go_back(self, count: int) -> None:
        """Undo the last `count` tokens, each consumed where `can_go_back` was true."""
        if self._phase is _Phase.WAITING:
            if count:
                self._tail, self._heard, self._gap = self._guessed[-count]
            self._guessed.clear()
        elif count:
            self._undo(count)

    def _undo(self, count: int) -> None:
        self._broken |= self._matcher.failed
        if not self._matcher.go_back(count):
            raise ConstraintError(f"the grammar can't go back: {self._matcher.reason}")

    def _try_wait(self, token: int) -> bool:
        """Wait on behind a guess, unless the grammar would begin with it: a guess may not."""
        before = _Waiting(self._tail, self._heard, self._gap)
        self._wait(token)
        if self._phase is _Phase.WAITING:
            self._guessed.append(before)
            return True
        self._phase = _Phase.WAITING
        self._tail, self._heard, self._gap = before
        self._matcher.reset()
        return False

    def consume(self, token: int) -> None:
        """Consume the token that was chosen; after the end, anything is ignored."""
        if self._phase is _Phase.ENDED:
            return
        starts = self._starts()
        if token in self._ends and self.complete:
            self._phase = _Phase.ENDED
        elif self._phase is _Phase.WAITING:
            self._wait(token)
        elif token in starts and self._is_thought(token):
            self._phase = _Phase.WAITING
            self._matcher.reset()
        elif self._gap and token in self._spaces() and not self._takes([token]):
            self._gap -= 1
            return
        elif self._matcher.is_stopped or not self._matcher.consume(token):
            # A masked token has no probability, unless no token has any.
            raise NothingAllowedError(
                f"token {token} is not what the grammar allows, and nothing else is left;"
                " forbid less with logit_bias"
            )
        elif token not in self._spaces():
            self._gap = 0
        self._unclear = self._unclear + 1 if self._holds and token in starts else 0
        if self._phase is _Phase.FIRST and not self._unclear:
            self._phase = _Phase.HOLDING

    def forced(self) -> list[int]:
        """The tokens that must come next, the end included; empty where there is a choice.

        The caller runs the model over all of them at once and consumes each.
        """
        if not self._holds or self._besides():
            return []
        if self._matcher.is_stopped:
            # Which end it is tells calls from text in some models, and is theirs to say.
            return self._ends if len(self._ends) == 1 else []
        return self._matcher.forced()

    def _besides(self) -> Collection[int]:
        """The tokens that may come although the grammar doesn't know them."""
        return (*self._starts(), *(self._spaces() if self._gap else ()))

    def _starts(self) -> Collection[int]:
        """The next token of the mark of reasoning, which may begin where the answer does."""
        if self._thinking is None or self._phase is not _Phase.FIRST:
            return ()
        return self._thinking.start_ids[self._unclear : self._unclear + 1]

    def _is_thought(self, token: int) -> bool:
        """True if the next token of the mark shows that reasoning begins, not a call or document.

        `<think>` and `<tool_call>` have a token in common where both are written in several.
        """
        assert self._thinking is not None
        return self._unclear + 1 == len(self._thinking.start_ids) or not self._takes([token])

    def _spaces(self) -> Collection[int]:
        return self._thinking.spaces if self._thinking else ()

    def _wait(self, token: int) -> None:
        """Consume a token of reasoning, or of what ends it."""
        assert self._thinking is not None
        mark = self._thinking.end.encode()
        # By its text: unless it is a single token, its ids depend on its neighbours.
        kept = max(0, len(self._tail) - len(mark) + 1)
        self._tail = self._tail[kept:] + self._tokenizer.decode_bytes([token])
        _, mark_there, after = self._tail.partition(mark)
        if (token,) == self._thinking.end_ids:
            self._begin()
        elif mark_there:
            self._begin()
            self._matcher.consume_some(self._tokenizer.tokenize_bytes(after.lstrip()))
        else:
            self._call_in_thought(token)

    def _call_in_thought(self, token: int) -> None:
        """Begin where a call begins: some models call without ending their thinking.

        Its mark is a special token, or text that has come in several ones.
        """
        begun = [token]
        if not self._tokenizer.is_special_token(token):
            self._heard += self._tokenizer.decode_bytes(begun)
            _, mark, behind = self._heard.partition(self._opening) if self._opening else (b"",) * 3
            if not mark:
                self._heard = self._heard[-len(self._opening) :] if self._opening else b""
                return
            begun = self._tokenizer.tokenize_bytes(mark + behind)
        if self._takes(begun):
            self._phase = _Phase.HOLDING
            self._matcher.consume_some(begun)
        self._heard = b""

    def _begin(self) -> None:
        """Begin the grammar; white space that the model was trained to write may come first."""
        self._phase, self._gap = _Phase.HOLDING, _MOST_GAP

    def _takes(self, tokens: list[int]) -> bool:
        """True if the grammar has room for these tokens; nothing changes."""
        return self._matcher.takes(tokens)


def _with(bits: np.ndarray[Any, Any], tokens: Collection[int]) -> np.ndarray[Any, Any]:
    """The mask with these tokens added."""
    if tokens:
        bits = bits.copy()
        for token in tokens:
            bits[token // 8] |= 1 << token % 8
    return bits


def _mask_of(tokens: Collection[int], vocab_size: int) -> mx.array:
    allowed = np.zeros(vocab_size, dtype=np.bool_)
    allowed[[token for token in tokens if token < vocab_size]] = True
    return mx.array(allowed)


def _unpacked(bits: np.ndarray[Any, Any], vocab_size: int) -> mx.array:
    # The mask has whole 32-bit words; columns that it lacks are no token's.
    allowed = np.unpackbits(bits, count=min(vocab_size, bits.size * 8), bitorder="little")
    if allowed.size < vocab_size:
        allowed = np.pad(allowed, (0, vocab_size - allowed.size))
    return mx.array(allowed.view(np.bool_))


def _where(allowed: mx.array, logits: mx.array) -> mx.array:
    return mx.where(allowed, logits, mx.array(-float("inf"), dtype=logits.dtype))


def _on_metal() -> bool:
    return mx.metal.is_available() and mx.default_device().type == mx.DeviceType.gpu


def _metal(bits: np.ndarray[Any, Any], logits: mx.array) -> mx.array:
    """The same with llguidance's Metal kernel: 1/8 of the bytes, one launch. Untried by us."""
    from llguidance.mlx import apply_token_bitmask

    packed = np.ascontiguousarray(bits).view(np.int32)
    return apply_token_bitmask(logits.reshape(1, -1), packed).reshape(logits.shape)
