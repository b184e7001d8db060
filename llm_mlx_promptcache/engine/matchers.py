"""llguidance's matchers: built once a grammar, and again where a guess has broken one.

A matcher that fails stays failed, and so do all of its copies: they share a lexer. Then one is
built again, and given the tokens that the broken one had consumed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from ..chat.grammar import Grammar, GrammarError

_REASON_LIMIT = 200
# A matcher of a few hundred tools takes tens of megabytes.
_MOST_MATCHERS = 4


class Matchers:
    """A model's matchers, remembered by their grammar: building one of many tools takes a second.

    A copy of a remembered one takes microseconds; they share what is built.
    """

    def __init__(self, tokenizer: LLTokenizer) -> None:
        self.tokenizer = tokenizer
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()

    def of(self, grammar: Grammar) -> LLMatcher:
        """A matcher at the grammar's beginning; GrammarError where llguidance refuses it."""
        matcher = self._kept.pop(grammar.text, None)
        if matcher is None:
            limits = LLParserLimits(verbose_errors=False)
            matcher = LLMatcher(self.tokenizer, grammar.text, log_level=0, limits=limits)
            if matcher.is_error():
                reason = reason_of(matcher)
                raise GrammarError(f"the grammar is refused: {reason}; simplify schema or tools")
        self._kept[grammar.text] = matcher
        if len(self._kept) > _MOST_MATCHERS:
            self._kept.popitem(last=False)
        return matcher.deep_copy()

    def forget(self, grammar: Grammar) -> None:
        """Forget a grammar one of whose matchers failed: no other answer may have a copy of it."""
        self._kept.pop(grammar.text, None)


class Matcher:
    """A matcher for one answer, which knows what it has consumed."""

    def __init__(self, matchers: Matchers, grammar: Grammar) -> None:
        self._matchers = matchers
        self._grammar = grammar
        self._inner = matchers.of(grammar)
        self._consumed: list[int] = []

    @property
    def is_stopped(self) -> bool:
        """True if only the end can follow, or if it has failed."""
        return bool(self._inner.is_stopped())

    @property
    def is_accepting(self) -> bool:
        """True if the tokens consumed make a whole answer."""
        return bool(self._inner.is_accepting())

    @property
    def failed(self) -> bool:
        """True if it has failed and is of no more use."""
        return bool(self._inner.is_error())

    @property
    def reason(self) -> str:
        """The reason why it can't go on."""
        return reason_of(self._inner)

    def bits(self) -> npt.NDArray[np.uint8]:
        """A bit for each token that may follow, eight in a byte, the first lowest."""
        found = np.frombuffer(self._inner.compute_bitmask(), dtype=np.uint8)
        self._forget_failed()
        return found

    def forced(self) -> list[int]:
        """The tokens that must follow."""
        return list(self._inner.compute_ff_tokens())

    def takes(self, tokens: Sequence[int]) -> bool:
        """True if there is room for these tokens; nothing changes."""
        return bool(self._inner.validate_tokens(list(tokens)) == len(tokens))

    def consume(self, token: int) -> bool:
        """Consume a token if it may follow."""
        done = bool(self._inner.consume_token(token))
        self._consumed += [token] * done
        self._forget_failed()
        return done

    def consume_some(self, tokens: Sequence[int]) -> None:
        """Consume as many of these tokens as may follow."""
        count = self._inner.try_consume_tokens(list(tokens))
        self._consumed += tokens[:count]

    def reset(self) -> None:
        """Go back to the grammar's beginning."""
        self._inner.reset()
        self._consumed.clear()

    def go_back(self, count: int) -> bool:
        """Undo the last `count` tokens; if it has failed, a new matcher takes its place."""
        kept = self._consumed[: len(self._consumed) - count]
        if self.failed or (count and not self._inner.rollback(count)):
            self._matchers.forget(self._grammar)
            self._inner = self._matchers.of(self._grammar)
            if self._inner.try_consume_tokens(kept) < len(kept):
                return False
        self._consumed = kept
        return True

    def _forget_failed(self) -> None:
        if self.failed:
            self._matchers.forget(self._grammar)


def reason_of(matcher: LLMatcher) -> str:
    """The reason why a matcher failed, in a few words."""
    reason = " ".join(matcher.get_error().split()) or "nothing may follow"
    return reason[:_REASON_LIMIT]
