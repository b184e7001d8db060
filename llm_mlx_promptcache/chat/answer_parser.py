"""Generated text -> text, reasoning and calls of tools, piece by piece and at the end.

A cut call is never a call: `Answer.cut` holds an error that the front end can raise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import Any

from .answer_parts import (
    Answer,
    CallArguments,
    CallName,
    CutShort,
    Part,
    ReasoningDelta,
    TextDelta,
    cut_short,
    half_call,
)
from .argument_schemas import parameters_of
from .bare_calls import is_bare
from .call_forms import Thinking
from .call_objects import new_call_id
from .form_reading import CallReader, CallStart, Run
from .forms import Form, bare_openings
from .generated import InvalidCall, ToolCall
from .grammar import Grammar
from .hand_forms import GENERIC, grammar_form
from .part_parser import PartParser
from .scanning import Marks

# A mark behind one of these is quoted and closes nothing.
_QUOTES = ("`", '"', "'")


class _Mode(Enum):
    """The kind of text that comes next, as far as is known."""

    TEXT = auto()
    REASONING = auto()
    CALL = auto()


class AnswerParser(PartParser):
    """Takes an answer's text as it comes, emits its parts, and returns the whole at the end.

    Arguments that a grammar holds to their schemas are emitted as they come; otherwise a call is
    held back until it is complete, since it may turn out to be none.
    """

    def __init__(
        self,
        form: Form | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        grammar: Grammar | None = None,
        thinking: Thinking | None = None,
        most: int | None = None,
    ) -> None:
        super().__init__(most)
        self._grammar = grammar
        self._held = grammar is not None and grammar.has_calls
        self._sure = grammar is not None and grammar.holds_arguments
        if not tools or (grammar is not None and not grammar.has_calls):
            form = None
        self._form = grammar_form(form) if form and self._held else form
        self._own = form
        self._tools, self._thinking = tools, thinking
        # In a form without marks a grammar's calls have none either.
        bare = grammar is None or grammar.kind == "tools"
        bare = bare or (self._form is not None and is_bare(self._form))
        self._bare = bare_openings(self._form, tools) if self._form and bare else ()
        self._words = form.words if form else ""
        self._mode = _Mode.TEXT
        if thinking is not None and thinking.opened:
            self._mode = _Mode.REASONING
        # The mode that a call was found in, and that of its text if it turns out to be none.
        self._outside = self._mode
        self._spaces = ""  # shown only when something of the same kind follows
        self._after_mark = self._mode is _Mode.REASONING
        self._mark = ""
        self._reader: CallReader | None = None
        self._told: dict[str, str] = {}
        self._texts: list[str] = []
        self._reasonings: list[str] = []

    @property
    def reasons(self) -> bool:
        """True if the next text is reasoning, as far as is known."""
        return self._mode is _Mode.REASONING

    def finish(self, *, whole: bool) -> tuple[list[Part], Answer]:
        """The last parts, and the answer.

        `whole`: the model ended it, or its grammar could end there; False for a limit or a stop
        string.
        """
        parts: list[Part] = []
        half: InvalidCall | None = None
        kind = None if self._grammar is None else self._grammar.kind
        called = bool(self._calls) or self._mode is _Mode.CALL
        cut = None if whole or kind == "tools" else cut_short(kind, called=called)
        if not whole and self._held and self._mode is _Mode.TEXT:
            # The beginning of a mark is no part of the answer's text.
            self._waiting = self._waiting[: len(self._waiting) - self._marked()]
        while not self.full and (self._waiting or self._mode is _Mode.CALL):
            if self._mode is _Mode.CALL:
                reader = self._reader
                assert reader is not None
                run = self._finish_call(parts, whole=whole)
                if run.cut:
                    cut = CutShort("a call of a tool")
                    half = self._half_of(reader, run)
            elif not self._step(parts, last=True):
                break
        if self._sure and any(call.id in self._told for call in self._invalid):
            # Its name has been emitted already, so the stream's reader must be told.
            cut = CutShort("a call that can't be read")
        if not whole and self._held:
            cut = cut or cut_short(kind, called=bool(self._calls))
        if self._spaces and not self._calls and self._mode is _Mode.TEXT:
            self._show(parts, "")
        text, reasoning, streamed = self._told_apart()
        calls, invalid = tuple(self._calls), tuple(self._invalid)
        return parts, Answer(text, reasoning, calls, cut, invalid, streamed, half)

    def _half_of(self, reader: CallReader, run: Run) -> InvalidCall | None:
        """The call that was cut; None if only closing marks of a complete one are missing."""
        name, id = reader.half_name, self._told_last()
        if run.calls and not (name or id):
            return None
        return half_call(name, run.half, id or new_call_id())

    def _told_last(self) -> str:
        """The id of the call that was emitted and is incomplete; "" if there is none."""
        done = {call.id for call in self._calls} | {call.id for call in self._invalid}
        return next((id for id in self._told if id not in done), "")

    def _told_apart(self) -> tuple[str, str, str]:
        """Text, reasoning, and the text as it was streamed if that differs.

        Some models close a reasoning that neither they nor the prompt have opened.
        """
        text, reasoning = "".join(self._texts), "".join(self._reasonings)
        kind = None if self._grammar is None else self._grammar.kind
        if self._thinking is None or reasoning or kind is not None:
            return text, reasoning, ""
        before, mark, after = text.partition(self._thinking.end)
        if not mark or before[-1:] in _QUOTES:
            return text, reasoning, ""
        return after.lstrip(), before.strip(), text

    def _step(self, parts: list[Part], *, last: bool = False) -> bool:
        """Parse as much of the waiting text as possible; False when more text is needed first."""
        if self._mode is _Mode.CALL:
            return self._feed_call(parts)
        if self._opens_bare(last=last):
            self._enter_call("")
            return True
        if self._may_be_bare(last=last):
            return False
        before, mark, after = Marks(self._marks()).split(self._waiting)
        if mark is None and last:
            before, after = self._waiting, ""
        self._say(parts, before)
        self._waiting = after
        if mark is not None:
            self._enter(mark)
        return mark is not None

    def _openings(self) -> tuple[str, ...]:
        return self._form.openings if self._form else ()

    def _wakers(self) -> tuple[str, ...]:
        """The marks that start a grammar even while it waits for the end of reasoning."""
        if self._form is None or self._grammar is None or not self._held:
            return ()
        special, own = dict(self._form.special), self._grammar.opening
        return tuple(mark for mark in self._openings() if mark in special or mark == own)

    def _marked(self) -> int:
        """The number of last waiting characters that may be the beginning of a call."""
        return Marks(self._openings()).overlap(self._waiting)

    def _marks(self) -> list[str]:
        """The marks that have a meaning at this point."""
        thinking = self._thinking
        kind = None if self._grammar is None else self._grammar.kind
        if self._mode is _Mode.REASONING:
            ends = [thinking.end] if thinking else []
            # Some models call from inside their thinking, without ending it.
            own = self._own.openings if self._own and kind is None else ()
            return [*ends, *own, *self._wakers()]
        # Reasoning comes first: behind shown text its mark is text about the mark.
        opens = thinking is not None and thinking.start and self._opens(thinking.start)
        marks = [thinking.start] if thinking and opens else []
        if self._words and self._opens(self._words):
            marks.append(self._words)
        # A call in place of a document comes first too: the document may quote the mark.
        either = kind == "tools_or_schema"
        return [*marks, *(m for m in self._openings() if not either or self._opens(m))]

    def _opens(self, mark: str) -> bool:
        """True if the waiting text is, or may become, a `mark` with no text before it."""
        lead = self._waiting.lstrip()
        return not self._texts and (lead.startswith(mark) or mark.startswith(lead))

    def _enter(self, mark: str) -> None:
        if self._thinking is not None and mark in (self._thinking.start, self._thinking.end):
            self._mode = _Mode.TEXT if self._mode is _Mode.REASONING else _Mode.REASONING
            self._after_mark, self._spaces = True, ""
        elif mark == self._words:
            self._words, self._after_mark, self._spaces = "", True, ""
        else:
            self._enter_call(mark)

    def _enter_call(self, mark: str) -> None:
        self._outside = self._mode
        # No grammar holds calls without marks, or calls in reasoning that do not end it.
        held = self._outside is _Mode.TEXT or mark in self._wakers()
        free = not mark or not held
        form = (self._own if free else self._form) or GENERIC
        left = None
        # Without marks only what follows tells whether it was a call at all.
        if self._most is not None and mark:
            left = self._most - len(self._calls) - len(self._invalid)
        known = {call.id for call in self._calls} | {call.id for call in self._invalid}
        sure = self._sure and not free
        self._reader = CallReader(form, self._tools, sure=sure, most=left, known=known)
        self._mark, self._mode = mark, _Mode.CALL
        self._waiting = mark + self._waiting

    def _feed_call(self, parts: list[Part]) -> bool:
        assert self._reader is not None
        text, self._waiting = self._waiting, ""
        self._tell_pieces(parts, self._reader.feed(text))
        if self._reader.run is None:
            return False
        self._leave_call(parts, self._reader.run)
        return True

    def _finish_call(self, parts: list[Part], *, whole: bool) -> Run:
        assert self._reader is not None
        text, self._waiting = self._waiting, ""
        self._tell_pieces(parts, self._reader.feed(text))
        run = self._reader.finish(whole=whole)
        self._tell_pieces(parts, self._reader.told())
        self._leave_call(parts, run)
        return run

    def _leave_call(self, parts: list[Part], run: Run) -> None:
        """Take the calls that were read; text that was no call is text after all."""
        assert self._reader is not None
        reader, mark, self._reader = self._reader, self._mark, None
        self._mode = self._outside
        told = self._all_calls(run) if run.calls else run.cut
        bare_text = not mark and bool(reader.rest.strip() or not told)
        if bare_text or not (run.calls or run.cut):
            taken = len(mark)
            self._bare = ()
            self._waiting = reader.text[taken:]
            if bare_text:
                run.cut = False
            self._after_mark = self._after_mark and not mark
            self._say(parts, mark)
            return
        self._waiting = reader.rest
        self._spaces, self._after_mark = "", True
        for call in run.calls:
            if isinstance(call, InvalidCall):
                self._invalid.append(call)
                if call.id not in self._told:
                    parts.append(call)
            else:
                self._tell(parts, call)

    def _tell(self, parts: list[Part], call: ToolCall) -> None:
        if call.id not in self._told:
            parts.append(CallName(call.id, call.name))
            arguments = json.dumps(call.arguments, ensure_ascii=False)
            parts.append(CallArguments(call.id, arguments))
        self._calls.append(call)

    def _tell_pieces(self, parts: list[Part], pieces: Sequence[Any]) -> None:
        for piece in pieces:
            if isinstance(piece, CallStart):
                self._told[piece.id] = piece.name
                parts.append(CallName(piece.id, piece.name))
            else:
                parts.append(CallArguments(piece.id, piece.text))

    def _say(self, parts: list[Part], text: str) -> None:
        """Emit text or reasoning; white space beside a mark belongs to the mark."""
        if self._after_mark:
            text = text.lstrip()
        if not text:
            return
        self._after_mark = False
        text = self._spaces + text
        if self._form is None and self._texts and self._mode is _Mode.TEXT:
            self._show(parts, text)
            return
        shown = text.rstrip()
        self._spaces = text[len(shown) :]
        if shown:
            spaces, self._spaces = self._spaces, ""
            self._show(parts, shown)
            self._spaces = spaces

    def _show(self, parts: list[Part], text: str) -> None:
        text, self._spaces = text or self._spaces, ""
        if self._mode is _Mode.REASONING:
            self._reasonings.append(text)
            parts.append(ReasoningDelta(text))
        else:
            self._texts.append(text)
            parts.append(TextDelta(text))

    def _opens_bare(self, *, last: bool) -> bool:
        """True if the waiting text begins a call without marks, by its form or by omission."""
        return self._nothing_said() and self._lead_in(last=last) is True

    def _may_be_bare(self, *, last: bool) -> bool:
        return not last and self._nothing_said() and self._lead_in(last=last) is None

    def _lead_in(self, *, last: bool) -> bool | None:
        """True if a call without marks begins; None if more text is needed to tell."""
        lead = "".join(self._waiting[:512].split())
        if any(lead.startswith(one) for one in self._bare):
            return True
        return None if any(one.startswith(lead) for one in self._bare) else False

    def _all_calls(self, run: Run) -> bool:
        """True if JSON without marks is calls alone: each names a tool, or has arguments."""
        names = parameters_of(self._tools)
        return bool(run.calls) and all(
            isinstance(call, ToolCall) or call.name in names or call.arguments for call in run.calls
        )

    def _nothing_said(self) -> bool:
        return bool(self._bare) and self._mode is _Mode.TEXT and not (self._texts or self._calls)
