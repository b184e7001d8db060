"""Calls out of text, as a `Form` writes them and as models bend it: marks left out, other spaces.

`CallReader` takes one run of calls as it comes. It is one coroutine over the text, so the cuts
between pieces change nothing; each step takes text or ends, so it always ends.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .arguments import parameters_of
from .call_builder import BEGINNING, CallBuilder
from .call_objects import as_arguments, object_of
from .forms import CallLayout, Form, Hole, marks_in
from .generated import InvalidCall, ToolCall
from .inline_reading import InlineArguments
from .tag_reading import TagArguments
from .text_source import Steps, TextSource

_NAME = re.compile(r"[^\s<>\[\](){}\"'=,|]{1,128}")
_ID = re.compile(r"[^\s<>\[\]{}\"]{1,128}")
_COUNT = re.compile(r"[0-9]{1,9}")
_LONGEST = 128


class CallStart(NamedTuple):
    """A call whose name is known while its arguments still come."""

    id: str
    name: str


class CallPiece(NamedTuple):
    """The next piece of that call's arguments, as JSON text."""

    id: str
    text: str


@dataclass
class Run:
    """A run of calls: the calls in order, the length of their text, and True if one was cut.

    `half` is the text of the one that was cut.
    """

    calls: list[ToolCall | InvalidCall] = field(default_factory=list)
    taken: int = 0
    cut: bool = False
    half: str = field(default="", repr=False)


class CallReader:
    """Reads one run of calls from its beginning; `run` is set once it has ended.

    `sure`: a grammar wrote the calls, so they are exactly in form and are emitted as they come.
    After `most` calls the run has ended, whatever follows. `known` are ids that no call may have.
    """

    def __init__(
        self,
        form: Form,
        tools: Sequence[Mapping[str, Any]],
        *,
        sure: bool = False,
        most: int | None = None,
        known: Collection[str] = (),
    ) -> None:
        self._form, self._most = form, most
        self._parameters = parameters_of(tools)
        self._longest = max(map(len, self._parameters), default=0)
        self._source = TextSource()
        holes = [piece for piece in form.call if isinstance(piece, Hole)]
        # An id behind the arguments comes too late for a stream of them.
        self._sure = sure and form.as_json and holes[-1:] == [Hole.ARGUMENTS]
        self._builder = CallBuilder(form, self._parameters, held=self._sure, known=known)
        self._steps = self._read()
        self._events: list[CallStart | CallPiece] = []
        self._open, self._told = "", 0
        self._open_list = self._half = False
        self.run: Run | None = None

    def feed(self, text: str) -> list[CallStart | CallPiece]:
        """Take more text; returns new events of calls that are sure."""
        self._source.add(text)
        self._advance()
        return self.told()

    def told(self) -> list[CallStart | CallPiece]:
        """The events since the last call."""
        self._tell()
        events, self._events = self._events, []
        return events

    def finish(self, *, whole: bool) -> Run:
        """End the text; `whole`: the model itself ended it."""
        self._source.close(whole=whole)
        self._advance()
        assert self.run is not None
        return self.run

    @property
    def rest(self) -> str:
        """The text behind the run."""
        assert self.run is not None
        return self._source.text[self.run.taken :]

    @property
    def text(self) -> str:
        """All text that was taken so far."""
        return self._source.text

    @property
    def half_name(self) -> str:
        """The name of the tool in the incomplete call; "" if it got no further."""
        assert self.run is not None
        return self._builder.half(self.run.half)

    def _advance(self) -> None:
        if self.run is None:
            try:
                next(self._steps)
            except StopIteration as ended:
                self.run = ended.value

    def _read(self) -> Generator[None, None, Run]:
        source, run = self._source, Run()
        closed, last = True, 0
        while True:
            source.at = run.taken
            calls = yield from self._sure_call() if self._sure else self._calls(run)
            if calls is None:
                break
            closed = (yield from self._tail()) and not self._half
            run.calls += calls
            last, run.taken = run.taken, source.at
            if source.at == len(source.text) and source.closed:
                break
            if self._has_most(len(run.calls)):
                break
        rest = source.text[run.taken :].strip()
        tags = self._form.tags
        ends = (*self._form.tail_marks, "]", tags.opening if tags else "")
        unclear = run.calls and isinstance(run.calls[-1], InvalidCall)
        if not closed and source.cut and (unclear or any(end.startswith(rest) for end in ends)):
            # Its end is missing: more may have been to come.
            run.calls.pop()
            run.cut, run.taken = True, last
        run.cut = run.cut or self._was_cut()
        if run.cut:
            run.half, run.taken = source.text[run.taken :], len(source.text)
        return run

    def _has_most(self, calls: int) -> bool:
        return self._most is not None and calls >= self._most

    def _was_cut(self) -> bool:
        """True if the text ended while a call was being read."""
        return self._source.cut and self._source.hungry

    def _calls(self, run: Run) -> Steps[list[ToolCall | InvalidCall] | None]:
        """The calls at the place, or None if there is none."""
        source, form = self._source, self._form
        start = source.at
        source.hungry = False
        leads, exact = yield from self._lead()
        if run.calls and not leads and not (yield from self._separated(run)):
            return None
        source.hungry = bool(leads) or bool(run.calls)
        yield from source.space()
        if (yield from source.peek()) in "{[" and not (
            form.layout is CallLayout.INLINE and (yield from source.peek()) == "["
        ):
            calls = yield from self._objects()
            if calls is not None:
                return calls
            source.at = start
            return None
        if form.layout in (CallLayout.OBJECT, CallLayout.KEYED):
            return None
        one = yield from self._pieces(start, exact=exact)
        return None if one is None else [one]

    def _lead(self) -> Steps[tuple[int, bool]]:
        """The number of opening marks taken; True if the last one taken is the form's last."""
        marks, count, last = self._form.lead_marks, 0, not self._form.lead_marks
        taken = True
        while taken and count < 4 * len(marks):
            taken = False
            for mark in marks:
                if (yield from self._source.take(mark)):
                    taken, last = True, mark == marks[-1]
                    count += 1
                    break
        return count, last

    def _separated(self, run: Run) -> Steps[bool]:
        """True if a call may follow another without marks of its own: only inside a section."""
        form = self._form
        objects = form.layout in (CallLayout.OBJECT, CallLayout.KEYED)
        if form.layout is CallLayout.INLINE or not marks_in(
            form.head.partition("{")[0] if objects else form.head
        ):
            for mark in (",", ";"):
                yield from self._source.take(mark)
            return True
        return False

    def _tail(self) -> Steps[bool]:
        """Take the marks that close calls; True if there was one, or none is needed."""
        marks, closed = self._form.tail_marks, not self._form.tail_marks
        if self._sure and self._form.end.lstrip().startswith("]"):
            marks = ("]", *marks)
        if self._open_list:
            closed = False
        taken = True
        while taken:
            taken = False
            for mark in marks:
                if (yield from self._source.take(mark)):
                    taken = closed = True
                    break
        return closed

    def _pieces(self, start: int, *, exact: bool) -> Steps[ToolCall | InvalidCall | None]:
        """One call of the layouts that are no object; None if no name stands there."""
        source, form = self._source, self._form
        name, own, arguments = "", "", None
        for index, piece in enumerate(form.call):
            if piece is Hole.NAME:
                read = yield from self._name()
                if read is None:
                    return None
                name = read
                if name not in self._parameters and not exact:
                    return None
            elif piece is Hole.ID:
                own = yield from source.match(_ID, _LONGEST)
            elif piece is Hole.COUNT:
                own = yield from source.match(_COUNT, 9)
            elif piece is Hole.ARGUMENTS:
                source.hungry = True
                arguments = yield from self._arguments(name)
            elif 0 < index < len(form.call) - 1 or (index == 0 and form.call[1:] == ()):
                for mark in marks_in(piece):
                    yield from source.take(mark)
        if arguments is None and not source.cut and name not in self._parameters:
            return None
        self._half = arguments is None and source.cut
        text = source.text[start : source.at]
        return self._builder.call(name, arguments, self._builder.own_id(name, own), text)

    def _name(self) -> Steps[str | None]:
        """The tool's name at the place, or the unknown name that stands there."""
        source = self._source
        yield from source.space()
        yield from source.need(self._longest + 1)
        rest = source.text[source.at : source.at + self._longest + 1]
        for name in self._builder.names:
            if rest.startswith(name) and not _continues(rest[len(name) : len(name) + 1]):
                source.at += len(name)
                return name
        word = yield from source.match(_NAME, _LONGEST)
        if not word:
            return None
        # A count may follow a name with nothing that parts them but a colon.
        head, colon, count = word.rpartition(":")
        counted = bool(colon) and count.isdigit()
        for name in self._builder.names:
            if word.endswith(name) and word[: -len(name)][-1:] in (":", ".", "/"):
                return name
            if counted and head.endswith(name):
                source.at -= len(count) + 1
                return name
        if counted and Hole.COUNT in self._form.call:
            source.at -= len(count) + 1
            return head
        return word

    def _arguments(self, name: str) -> Steps[dict[str, Any] | None]:
        schema = self._parameters.get(name, {})
        source, tags = self._source, self._form.tags
        if self._form.layout is CallLayout.HEADER or tags is None:
            yield from source.space()
            if (yield from source.peek()) == '"':
                return as_arguments((yield from source.string()))
            if (yield from source.peek()) != "{":
                return {} if (yield from self._closes()) else None
            text = yield from source.value()
            return None if text is None else object_of(text)
        if self._form.layout is CallLayout.INLINE:
            return (yield from InlineArguments(source, tags, schema).read())
        ends = [*self._form.tail_marks, *self._form.lead_marks]
        return (yield from TagArguments(source, tags, schema, ends).read())

    def _closes(self) -> Steps[bool]:
        """True if a closing mark of a call stands at the place, or the text ends there."""
        for mark in self._form.tail_marks:
            if (yield from self._source.stands(mark)):
                return True
        return self._source.at == len(self._source.text) and not self._source.cut

    def _objects(self) -> Steps[list[ToolCall | InvalidCall] | None]:
        """Calls as JSON, one object or a list of them; None if it is something else."""
        source = self._source
        self._open_list = yield from source.take("[")
        calls: list[ToolCall | InvalidCall] = []
        while True:
            yield from source.space()
            if (yield from source.peek()) != "{":
                break
            start = source.at
            text = yield from source.value()
            one: ToolCall | InvalidCall | None = None
            if text is not None:
                one = self._builder.from_text(text)
            elif not source.cut:
                one = self._broken(start)
            elif self._named_at(start) in self._parameters:
                source.hungry = True  # a call that was begun needs no mark
            if one is None:
                if not calls:
                    return None
                source.at = start
                break
            calls.append(one)
            if not self._open_list or self._has_most(len(self._builder.ids)):
                return calls
            yield from source.take(",")
        if self._open_list and (yield from source.take("]")):
            self._open_list = False
        return calls or None

    def _named_at(self, start: int) -> str:
        """The name in an object that begins at `start` and has no end."""
        return self._builder.named_in(self._source.text[start : start + BEGINNING])

    def _broken(self, start: int) -> InvalidCall | None:
        """An object that never closes: an invalid call, if it names a tool."""
        source = self._source
        ends = [at for m in self._form.tail_marks if (at := source.text.find(m, start)) >= 0]
        end = min(ends, default=len(source.text))
        call = self._builder.unreadable(source.text[start:end], "its JSON does not end")
        if call is not None:
            source.at = end
        return call

    def _sure_call(self) -> Steps[list[ToolCall | InvalidCall] | None]:
        """One call that is exactly in form, emitted as it comes."""
        source, form = self._source, self._form
        start, name, own = source.at, "", ""
        lead = form.between if self._builder.ids else form.start
        source.hungry = False
        for mark in marks_in(lead):
            yield from source.take(mark)
        begun, text, quoted = "", None, False
        for index, piece in enumerate(form.call):
            if isinstance(piece, str):
                for mark in marks_in(piece):
                    taken = yield from source.take(mark)
                    if not taken and not source.hungry and index == 0:
                        return None
                    source.hungry = True
                quoted = piece.endswith('"')
            elif piece is Hole.NAME:
                name = (yield from source.quoted() if quoted else self._name()) or ""
            elif piece is Hole.ARGUMENTS:
                if source.cut and source.at == len(source.text):
                    return None  # its name may be half of one
                begun = self._builder.free_id(self._builder.own_id(name, own))
                self._events.append(CallStart(begun, name))
                yield from source.space()
                self._open, self._told = begun, source.at
                text = yield from source.value()
                self._tell()
                self._open = ""
            else:
                own = yield from source.match(_ID, _LONGEST)
        if text is None:
            return None
        return [self._builder.call(name, object_of(text), begun, source.text[start : source.at])]

    def _tell(self) -> None:
        """Emit the new part of the arguments that are being read."""
        followed = self._source.followed
        if self._open and followed > self._told:
            self._events.append(CallPiece(self._open, self._source.text[self._told : followed]))
            self._told = followed


def _continues(character: str) -> bool:
    return bool(character) and (character.isalnum() or character in "_-")
