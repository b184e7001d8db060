"""Drafter: guesses of what an answer says next, copied from what was said before; no MLX here.

Prompt lookup (Saxena, 2023) over more than the prompt: what followed this exact prompt before, the
answer so far, the prompt, and other conversations. A draft is only ever a guess: the engine chooses
each token as without it, and reports how far the two agreed.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from ..cache.trie import Tokens

# Tokens that must agree before a copy is offered: at least, and at most after misses.
_LEAST, _MOST = 3, 32
_MISSES = 3  # drafts that may be wrong in a row before more tokens must agree
# Tokens of a draft: at first, behind a match this long, and at most.
_NARROW, _LONG, _WIDE = 4, 8, 16
# An edit is at most this long: behind it two tokens that come again are enough.
_EDIT = 24
_FACTOR, _WORD = 2654435761, 1 << 32  # two tokens as one number below 2**32
_BORDER = _WORD - 1  # between two texts; no vocabulary has such a token
_CANDIDATES = 16  # places of a text that are looked at, the newest first


class Source:
    """A text to copy from, with a sorted table of all its runs of three tokens."""

    def __init__(self, tokens: Tokens[int]) -> None:
        self.tokens = tokens
        self._table: tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]] | None = None

    def behind(self, pair: Sequence[int], third: int | None = None) -> list[int]:
        """Some positions behind two tokens; with a third the newest ones, the last first."""
        keys, ends = self._table or self._made()
        low = (pair[0] * _FACTOR + pair[1]) % _WORD << 32 | (third or 0)
        high = low if third is not None else low | _WORD - 1
        first = np.searchsorted(keys, np.uint64(low), "left")
        last = np.searchsorted(keys, np.uint64(high), "right")
        # Equal keys stand in the order of the text: one token a thousand times sorts nothing here.
        return cast("list[int]", ends[max(first, last - _CANDIDATES) : last][::-1].tolist())

    def _made(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        """The keys of all runs of three tokens, sorted, and the position behind each."""
        ids = np.frombuffer(self.tokens, np.uint32).astype(np.uint64)
        pairs = (ids[:-2] * np.uint64(_FACTOR) + ids[1:-1]) % np.uint64(_WORD)
        keys = pairs << np.uint64(32) | ids[2:]
        order = np.argsort(keys, kind="stable")
        self._table = keys[order], order.astype(np.int64) + 3
        return self._table


def joined(texts: Sequence[Tokens[int]]) -> Source:
    """Texts of other conversations, given newest first, as one source with the newest last."""
    tokens = array("I")
    for text in reversed(texts):
        tokens.extend(text)
        tokens.append(_BORDER)
    return Source(tokens)


@dataclass
class _Copy:
    """A copy that goes on at `at` of a text; one that is `sure` need not agree first."""

    source: Source
    at: int
    sure: bool = False

    @property
    def next(self) -> int | None:
        """The token that it expects."""
        return self.source.tokens[self.at] if self.at < len(self.source.tokens) else None


class Drafter:
    """Drafts for one answer.

    `prompt` are the tokens before it, `before` what followed exactly these, `others` what was
    said in other conversations; `learn` gives the last two later.
    """

    def __init__(
        self,
        prompt: Tokens[int],
        stop_ids: Collection[int] = (),
        before: Tokens[int] = array("I"),  # noqa: B008 (nobody writes to it)
        others: Source | None = None,
    ) -> None:
        self._prompt = Source(prompt)
        self._text = Source(prompt[:-1])  # the last one is fed with the first draft
        self._ends = frozenset((*stop_ids, _BORDER))
        self._others = others
        self._answer: dict[tuple[int, int], list[int]] = {}
        self._copy = _Copy(Source(prompt[-1:] + before), 0, sure=True) if before else None
        self._edited: _Copy | None = None  # where a copy broke off
        self._edit_left = 0
        self._needed, self._width, self._missed = _LEAST, _NARROW, 0
        # Two tokens behind which a copy was wrong at once: where a form has its values, say.
        self._distrusted: set[tuple[int, ...]] = set()
        self._offered_at: tuple[int, ...] = ()

    def learn(self, before: Tokens[int], others: Source) -> None:
        """Copy from these too: they were looked up during the answer's first pass."""
        self._others = others
        known = self._prompt.tokens[-1:] + before
        heard = self._text.tokens[len(self._prompt.tokens) - 1 :]
        if before and self._copy is None and known[: len(heard)] == heard:
            self._copy = _Copy(Source(known), len(heard), sure=True)

    def expects(self, path: Tokens[int]) -> bool:
        """True if the token behind `path` is worth waiting for: a draft may go on from it.

        The answer's first pass waits for no table: only what followed this very prompt is tried.
        """
        self._hear(path)
        if len(path) < len(self._prompt.tokens):
            return self._copy is not None
        if self._copy is not None:
            return self._copy.sure or self._agreed(self._copy) >= self._needed - 1
        pair = tuple(self._text.tokens[-2:])
        if len(pair) < 2:  # a template may write a prompt of one token
            return False
        return pair in self._answer or any(source.behind(pair) for source in self._searched())

    def propose(self, path: Tokens[int], token: int, most: int) -> list[int]:
        """Tokens that may follow `path` and `token`, at most `most` of them; often none."""
        self._hear(path)
        self._add(token)
        if token in self._ends:  # nothing of this answer comes behind it
            return []
        if self._copy is not None and self._copy.next is None:
            self._copy = None
        found = self._copy = self._copy or self._found()
        if found is None:
            return []
        agreed = _WIDE if found.sure else self._agreed(found)
        self._offered_at = tuple(self._text.tokens[-2:])
        if not found.sure and (agreed < self._needed or self._offered_at in self._distrusted):
            return []
        width = _WIDE if found.sure else max(self._width, _LONG * (agreed >= _LONG))
        draft = found.source.tokens[found.at : found.at + min(width, most)].tolist()
        ends = (at for at, one in enumerate(draft) if one in self._ends)
        return draft[: next(ends, len(draft))]

    def judge(self, offered: int, accepted: int) -> None:
        """Learn how much of a draft the model accepted."""
        if accepted == offered:
            self._width = min(_WIDE, self._width * 2)
        self._missed = 0 if accepted else self._missed + 1
        if accepted:
            self._needed = _LEAST
        else:
            self._width = _NARROW
            self._distrusted.add(self._offered_at)
            if self._missed > _MISSES:
                self._needed = min(_MOST, self._needed * 2)

    def _hear(self, path: Tokens[int]) -> None:
        """Catch up with an answer; tokens that were heard and then taken back are forgotten."""
        text = self._text.tokens
        if len(text) > len(path) or (len(text) and path[len(text) - 1] != text[-1]):
            self._forget_behind(min(len(path), len(text) - 1))
        for token in path[len(text) :]:
            self._add(token)

    def _forget_behind(self, count: int) -> None:
        """Keep the first `count` tokens that were heard, and the places up to their end."""
        del self._text.tokens[count:]
        for places in self._answer.values():
            while places and places[-1] > count:
                places.pop()
        self._copy = None

    def _add(self, token: int) -> None:
        text = self._text.tokens
        text.append(token)
        if len(text) >= 3:
            places = self._answer.setdefault((text[-3], text[-2]), [])
            places.append(len(text))
            del places[:-_CANDIDATES]
        copy = self._copy
        if copy is not None and copy.next == token:
            copy.at += 1
            self._distrusted.discard((text[-3], text[-2]) if len(text) > 2 else ())
        elif copy is not None:
            self._edited, self._edit_left, self._copy = copy, _EDIT, None
        if self._copy is None:
            self._resume()

    def _resume(self) -> None:
        """Resume the copy behind an edit, where two tokens of it come again."""
        if self._edited is None or not self._edit_left:
            return
        self._edit_left -= 1
        source, start = self._edited.source, self._edited.at
        last = self._text.tokens[-2:]
        near = source.tokens[start : start + _EDIT + 2]
        for at in range(len(near) - 1):
            if near[at : at + 2] == last:
                self._copy = _Copy(source, start + at + 2, sure=self._needed == _LEAST)
                return

    def _found(self) -> _Copy | None:
        """The place that agrees furthest back with the last tokens; of equals, the nearest one."""
        *pair, last = self._text.tokens[-3:]
        if len(pair) < 2:
            return None
        own = self._answer.get((pair[0], pair[1]), [])[-2::-1]
        places = [_Copy(self._text, at) for at in own if self._text.tokens[at - 1] == last]
        for source in self._searched():
            places += [_Copy(source, at) for at in source.behind(pair, last)]
        agreeing = [(self._agreed(one), one) for one in places if one.next is not None]
        best = max(agreeing, key=lambda found: found[0], default=None)
        return best[1] if best is not None and best[0] >= self._needed else None

    def _searched(self) -> Iterator[Source]:
        """The texts with tables; shorter ones have no three tokens."""
        for one in (self._prompt, self._others):
            if one is not None and len(one.tokens) >= _LEAST:
                yield one

    def _agreed(self, copy: _Copy) -> int:
        """The number of tokens before its place that equal those said last, at most `_MOST`."""
        text, tokens = self._text.tokens, copy.source.tokens
        most = min(_MOST, len(text), copy.at)
        for back in range(1, most + 1):
            if text[-back] != tokens[copy.at - back]:
                return back - 1
        return most
