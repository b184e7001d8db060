"""A model's form of calls, learned from its own chat template by rendering it and comparing.

The template is rendered with a call, with two, with other values and with words beside them.
Where the words that were put in stand, and what stands the same round them, is the form; it is
proved by reading back what the template writes of odd values. The idea is llama.cpp's (its
"autoparser"); no template's name or text is looked at.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from .arguments import json_value
from .form_probes import (
    ANSWER,
    ARGUMENTS,
    FIELDS,
    ID,
    NAMES,
    NUMBERS,
    ODD,
    OTHER_ID,
    PROOF,
    THOUGHT,
    TOOLS,
    Call,
    Probe,
    Refused,
)
from .form_reading import CallReader
from .forms import (
    KEY,
    ArgumentsAs,
    ContentAs,
    Form,
    Hole,
    Input,
    Keys,
    Layout,
    Piece,
    Strings,
    Tags,
    marks_in,
)
from .generated import ToolCall
from .text_edges import common_end, common_start, from_edge, to_edge

Apply = Callable[..., str]
_BRACES = 12
# Kimi's: the only place of a result's tool is its id.
_NAMED_ID: tuple[Piece, ...] = ("functions.", Hole.NAME, ":", Hole.COUNT)
_MOST = 28
# The dicts to try, the plainest first.
_INPUTS = (
    *(Input(arguments, content) for content in ContentAs for arguments in ArgumentsAs),
    Input(named_ids=True),
    Input(ArgumentsAs.TEXT, named_ids=True),
    *(Input(arguments, follow=True) for arguments in ArgumentsAs),
)


class NoForm(ValueError):
    """Why no form of calls could be learned from a template."""


class Unit(NamedTuple):
    """Where a call stands in a text: from its first hole to its last, and the pieces between."""

    start: int
    end: int
    layout: Layout
    pieces: tuple[Piece, ...]
    keys: Keys = Keys()
    arguments: tuple[int, int] = (0, 0)


def learn_form(apply: Apply) -> Form:
    """The form in which `apply(messages, tools=..., add_generation_prompt=...)` shows calls.

    NoForm tells why there is none. At most some 30 renderings are made.
    """
    probe = Probe(apply)
    reasons = {"calls are refused": 0}
    for given in _INPUTS:
        if probe.renderings > _MOST:
            break
        try:
            text = probe.calls(given, [Call(NAMES[0], ARGUMENTS[0], ID)])
        except Refused as error:
            reasons.setdefault(f"calls are refused ({error})", 1)
            continue
        if ARGUMENTS[0]["alpha_key"] not in text:
            reasons["calls are not shown"] = 2
            continue
        try:
            return _proved(_learned(probe, given, text), probe)
        except NoForm as error:
            reasons.setdefault(str(error), 3 + probe.renderings)
    raise NoForm(max(reasons, key=lambda reason: reasons[reason]))


def _learned(probe: Probe, given: Input, one: str) -> Form:
    unit = _unit(one, Call(NAMES[0], ARGUMENTS[0], ID), given)
    if unit is None:
        raise NoForm("a call's name and arguments are not found in what is shown")
    two = _two(probe, given)
    form = _framed(probe, given, one, unit, two)
    if unit.layout in (Layout.TAGS, Layout.INLINE):
        form = _with_tags(probe, given, form, one, unit)
    return form


def _two(probe: Probe, given: Input) -> tuple[str, Unit, Unit] | None:
    """Two calls in one answer, where the template shows both."""
    calls = [Call(NAMES[0], ARGUMENTS[0], ID), Call(NAMES[1], ARGUMENTS[1], OTHER_ID)]
    try:
        text = probe.calls(given, calls)
    except Refused:
        return None
    if ARGUMENTS[1]["alpha_key"] not in text:
        return None
    cut = text.find(ARGUMENTS[1]["alpha_key"])
    first = _unit(text[:cut], calls[0], given, text) or _unit(text, calls[0], given)
    second = _unit(text, calls[1], given, start=first.end if first else 0)
    return (text, first, second) if first and second and second.start >= first.end else None


def _unit(
    text: str, call: Call, given: Input, whole: str | None = None, start: int = 0
) -> Unit | None:
    """The call in `text`; objects may reach into `whole`, of which `text` is the beginning."""
    value = text.find(call.arguments["alpha_key"], start)
    if value < 0:
        return None
    whole = text if whole is None else whole
    found = _in_json(whole, call, value, start)
    if found is None:
        found = _in_tags(whole, call, value, start)
    if found is None:
        return None
    return _with_id(whole, found, call, given, start)


def _in_json(text: str, call: Call, value: int, start: int) -> Unit | None:
    """The call where its arguments are JSON: the largest object that is the call, or a header."""
    arguments: tuple[int, int] | None = None
    best: Unit | None = None
    at = value
    for _ in range(_BRACES):
        at = text.rfind("{", start, at)
        if at < 0:
            break
        try:
            found, end = json.JSONDecoder(strict=False).raw_decode(text, at)
        except ValueError:
            continue
        if end <= value or not isinstance(found, dict):
            continue
        if found == call.arguments:
            arguments = (at, end)
            continue
        keys = _keys(found, call)
        if keys is None and found == {call.name: call.arguments}:
            best = _object_unit(text, at, end, call, arguments, Layout.KEYED, Keys())
        elif keys is not None:
            best = _object_unit(text, at, end, call, arguments, Layout.OBJECT, keys)
    if best is not None or arguments is None:
        return best
    name = text.rfind(call.name, start, arguments[0])
    if name < 0:
        return None
    middle = text[name + len(call.name) : arguments[0]]
    pieces = (Hole.NAME, middle, Hole.ARGUMENTS)
    return Unit(name, arguments[1], Layout.HEADER, pieces, arguments=arguments)


def _object_unit(
    text: str,
    start: int,
    end: int,
    call: Call,
    arguments: tuple[int, int] | None,
    layout: Layout,
    keys: Keys,
) -> Unit | None:
    if arguments is None:
        shown = json.dumps(json.dumps(call.arguments))
        at = text.find(shown, start, end)
        arguments = (at, at + len(shown)) if at >= 0 else None
    name = text.find(f'"{call.name}"', start, end)
    if arguments is None or name < 0:
        return None
    places = sorted(
        [(name + 1, name + 1 + len(call.name), Hole.NAME), (*arguments, Hole.ARGUMENTS)]
    )
    (a, b, first), (c, d, second) = places
    return Unit(a, d, layout, (first, text[b:c], second), keys, arguments)


def _keys(found: Mapping[str, Any], call: Call) -> Keys | None:
    """Where an object has name and arguments, themselves or one level deeper."""
    for path, inner in [((), found), *(((k,), v) for k, v in found.items())]:
        if not isinstance(inner, Mapping):
            continue
        names = [key for key, value in inner.items() if value == call.name]
        for key, value in inner.items():
            encoded = isinstance(value, str) and _is_text_of(value, call.arguments)
            if names and (value == call.arguments or encoded):
                ids = [(k,) for k, v in found.items() if v == call.id and k]
                ids += [(*path, k) for k, v in inner.items() if v == call.id]
                name, arguments = (*path, names[0]), (*path, key)
                return Keys(name, arguments, ids[0] if ids else (), encoded)
    return None


def _is_text_of(text: str, arguments: Mapping[str, Any]) -> bool:
    try:
        return bool(json_value(text) == arguments)
    except ValueError:
        return False


def _in_tags(text: str, call: Call, value: int, start: int) -> Unit | None:
    """The call where each argument stands by itself, in the order that was given."""
    key = text.rfind("alpha_key", start, value)
    name = text.rfind(call.name, start, max(key, start))
    last = text.find(call.arguments["beta_key"], value)
    other = text.find("beta_key", value)
    if not 0 <= name < key or not value < other < last:
        return None
    end = last + len(call.arguments["beta_key"])
    inner = text[name + len(call.name) : key]
    return Unit(name, end, Layout.TAGS, (Hole.NAME, inner, Hole.ARGUMENTS), arguments=(key, end))


def _with_id(text: str, unit: Unit, call: Call, given: Input, start: int) -> Unit:
    """The unit with the call's id as a hole, where it is shown beside the name."""
    if given.named_ids or (unit.layout in (Layout.OBJECT, Layout.KEYED) and not unit.keys.id):
        return unit
    before = text.rfind(call.id, start, unit.start)
    if before >= 0 and text.find(call.name, before, unit.start) < 0:
        literal = text[before + len(call.id) : unit.start]
        return unit._replace(start=before, pieces=(Hole.ID, literal, *unit.pieces))
    inside = unit.pieces[1]
    if isinstance(inside, str) and call.id in inside:
        one, _, other = inside.partition(call.id)
        first, last = unit.pieces[0], unit.pieces[-1]
        return unit._replace(pieces=(first, one, Hole.ID, other, last))
    after = text.find(call.id, unit.end)
    if after >= 0 and after - unit.end < 40 and unit.layout is Layout.OBJECT:
        literal = text[unit.end : after]
        return unit._replace(end=after + len(call.id), pieces=(*unit.pieces, literal, Hole.ID))
    return unit


def _framed(
    probe: Probe, given: Input, one: str, unit: Unit, two: tuple[str, Unit, Unit] | None
) -> Form:
    """What stands round a call, between two, and round all of them."""
    before, after = one[: unit.start], one[unit.end :]
    start, end = _start(probe, given, one, unit), _end(probe, after, given)
    head, foot, between = start, end, ""
    if two is not None:
        text, first, second = two
        middle = text[first.end : second.start]
        head = from_edge(common_end(start, middle).lstrip())
        foot = to_edge(common_start(after, middle)[: len(middle) - len(head)].rstrip())
        between = middle[len(foot) : len(middle) - len(head)]
        start = start.removesuffix(head)
        ends = [end, _end(probe, text[second.end :], given)]
        # Some close all calls behind the first one only where others follow.
        end = max((one[len(foot) :] for one in ends if one.startswith(foot)), key=len, default="")
    else:
        start, end = "", ""
    prompt = probe.prompt()
    if not (start + head).strip() and between and prompt and prompt.endswith(between):
        # The prompt has written the first call's mark, which a second one shows.
        head, between = between, ""
    pieces, id = _counted(unit, two, head, given, before)
    head = pieces[0] if isinstance(pieces[0], str) else ""
    return Form(
        unit.layout,
        tuple(piece for piece in (*pieces, foot) if piece != ""),
        start,
        between,
        end,
        unit.keys,
        id=id,
        parallel=two is not None,
        input=given,
        words=_words(probe, given),
    )


def _counted(
    unit: Unit, two: tuple[str, Unit, Unit] | None, head: str, given: Input, before: str
) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """The pieces with the head, and how an id is written; a number that counts is a hole."""
    pieces = unit.pieces
    if given.named_ids:
        # The id was `functions.NAME:0`: so the count stands right behind the name.
        middle = pieces[1]
        if isinstance(middle, str) and middle.startswith(":0") and head.endswith("functions."):
            return (head, Hole.NAME, ":", Hole.COUNT, middle[2:], *pieces[2:]), _NAMED_ID
        return (head, *pieces), ()
    own = Hole.ID in pieces or bool(unit.keys.id)
    if two is not None and not own:
        _, first, second = two
        for index, (a, b) in enumerate(zip(first.pieces, second.pieces, strict=False)):
            if a != b and isinstance(a, str) and isinstance(b, str):
                at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), -1)
                if at >= 0 and a[at].isdigit() and b[at].isdigit():
                    made = (*pieces[:index], a[:at], Hole.COUNT, a[at + 1 :], *pieces[index + 1 :])
                    named = index == 1 and a[:at] == ":" and head.endswith("functions.")
                    return (head, *made), _NAMED_ID if named else ()
    return (head, *pieces), ((Hole.ID,) if own else ())


def _start(probe: Probe, given: Input, one: str, unit: Unit) -> str:
    """What stands before the first call and belongs to it.

    That is what stands there both behind other words and without them; where the template shows no
    words beside calls, what a plain answer does not begin with.
    """
    lead = one[: unit.start]
    starts = []
    beside = probe.beside(given)
    if beside is not None:
        found = _unit(beside, Call(NAMES[0], ARGUMENTS[0], ID), given)
        words = beside.find(ANSWER)
        if found is not None and 0 <= words < found.start:
            behind = beside[words + len(ANSWER) : found.start]
            starts.append(common_end(lead, behind).lstrip())
    plain = probe.plain()
    if plain is not None:
        shared = to_edge(common_start(lead, plain.partition(ANSWER)[0]))
        starts.append(lead[len(shared) :].lstrip())
    prompt = probe.prompt()
    if prompt is not None and lead.startswith(prompt):
        starts.append(lead[len(prompt) :].lstrip())
    if not starts:
        raise NoForm("what belongs to a call can't be told from the turn")
    return from_edge(min(starts, key=len))


def _words(probe: Probe, given: Input) -> str:
    """The mark in front of an answer's words, where the prompt does not write it."""
    prompt, beside = probe.prompt(), probe.beside(given)
    plain = probe.plain()
    for text in (beside, plain):
        if prompt is None or text is None or not text.startswith(prompt):
            continue
        lead = text[len(prompt) :].partition(ANSWER)
        if lead[1] and len(marks_in(lead[0])) == 1 and _apart(lead[0], probe):
            return lead[0].strip()
    return ""


def _apart(lead: str, probe: Probe) -> bool:
    """Whether a mark in front of words is not the end of a thought."""
    if lead.lstrip().startswith(("</", "[/")):
        return False
    text = probe.thought(dict.fromkeys(FIELDS, THOUGHT)) or ""
    behind = text.partition(THOUGHT)[2].partition(ANSWER)[0]
    return lead.strip() not in behind and lead.strip() not in text.partition(THOUGHT)[0]


def _end(probe: Probe, after: str, given: Input) -> str:
    """What stands behind the last call and does not end the turn."""
    plain = probe.plain()
    if plain is None:
        return "" if given.follow else after
    tail = plain.partition(ANSWER)[2]
    if given.follow:
        return after.partition(tail.strip())[0] if tail.strip() in after else ""
    if tail and after.endswith(tail):
        return after[: len(after) - len(tail)]
    # A turn that ends with a call may end with another mark, of which nothing is known; but what
    # ends an answer or begins the next turn is no call's.
    turns = [*marks_in(tail)[:1], *marks_in(probe.prompt() or "")]
    places = [at for mark in turns if mark[0] == "<" and (at := after.find(mark)) >= 0]
    return after[: min(places, default=len(after))]


def _with_tags(probe: Probe, given: Input, form: Form, one: str, unit: Unit) -> Form:
    """The marks round each argument; strings and other values may have their own."""
    call = Call(NAMES[0], ARGUMENTS[0], ID)
    strings = _marks(one, unit, call)
    numbers = Call(NAMES[0], NUMBERS, ID)
    try:
        text = probe.calls(given, [numbers])
    except Refused:
        text = ""  # it takes strings only
    shown = Call(NAMES[0], {key: str(value) for key, value in NUMBERS.items()}, ID)
    other_unit = _in_tags(text, shown, text.rfind(shown.arguments["alpha_key"]), 0)
    if text and other_unit is None:
        raise NoForm("arguments stand in another order, or are no text")
    other = strings if other_unit is None else _marks(text, other_unit, shown)
    opening = strings.opening
    tags = Tags(
        opening,
        other.middle,
        other.closing,
        strings.middle,
        strings.closing,
        strings.between,
    )
    encoding = _encoding(probe, given)
    quote = tags.string_middle.removeprefix(tags.middle)
    inline = not tags.closing.strip()
    if not inline and quote and tags.string_closing == quote + tags.closing:
        # Quotes inside marks are how strings are written, not what parts them.
        tags = replace(tags, string_middle=tags.middle, string_closing=tags.closing)
    tags = replace(tags, strings=encoding, wrap=_wrap(probe, given, tags))
    return _refitted(form, unit, tags, one, Layout.INLINE if inline else Layout.TAGS)


def _refitted(form: Form, unit: Unit, tags: Tags, one: str, layout: Layout) -> Form:
    """The form with the arguments' own marks taken out of the literals beside them."""
    pieces = list(form.call)
    at = pieces.index(Hole.ARGUMENTS)
    before = pieces[at - 1]
    assert isinstance(before, str)
    pieces[at - 1] = before.removesuffix(tags.opening)
    foot = pieces[at + 1] if at + 1 < len(pieces) else ""
    assert isinstance(foot, str)
    closing = tags.string_closing.replace(KEY, "beta_key")
    foot = foot.removeprefix(closing).removeprefix(closing.rstrip())
    pieces[at + 1 :] = [foot.lstrip()]
    return replace(form, layout=layout, call=tuple(p for p in pieces if p != ""), tags=tags)


class _Marks(NamedTuple):
    opening: str
    middle: str
    closing: str
    between: str


def _marks(text: str, unit: Unit, call: Call) -> _Marks:
    """What stands round two arguments: each literal is found twice."""
    one, two = call.arguments["alpha_key"], call.arguments["beta_key"]
    first_key = unit.arguments[0]
    first = text.find(one, first_key + len("alpha_key"))
    second_key = text.find("beta_key", first + len(one))
    second = text.find(two, second_key + len("beta_key"))
    middle = text[first_key + len("alpha_key") : first]
    if middle != text[second_key + len("beta_key") : second]:
        raise NoForm("arguments are shown in different ways")
    before = text[text.rfind(call.name, 0, first_key) + len(call.name) : first_key]
    inner = text[first + len(one) : second_key]
    after = text[second + len(two) :]
    closed = inner.replace("alpha_key", KEY)
    closing = to_edge(common_start(closed, after.replace("beta_key", KEY)))
    if not closing.strip():
        closing = closing if closing == closed else ""
    rest = closed[len(closing) :]
    opening = from_edge(common_end(before, rest))
    return _Marks(opening, middle, closing, rest[: len(rest) - len(opening)])


def _encoding(probe: Probe, given: Input) -> Strings:
    """How the characters of a string are written."""
    try:
        text = probe.calls(given, [Call(NAMES[0], {"alpha_key": ODD}, ID)])
    except Refused:
        return Strings.RAW
    dumped = (json.dumps(ODD)[1:-1], json.dumps(ODD, ensure_ascii=False)[1:-1])
    if ODD in text:
        return Strings.RAW
    if any(one in text for one in dumped):
        return Strings.JSON
    if repr(ODD)[1:-1] in text:
        return Strings.PYTHON
    return (
        Strings.HTML if html.escape(ODD) in text or html.escape(ODD, False) in text else Strings.RAW
    )


def _wrap(probe: Probe, given: Input, tags: Tags) -> tuple[str, str]:
    """What an odd string has round it that a plain one has not (XML's CDATA), or nothing."""
    try:
        text = probe.calls(given, [Call(NAMES[0], {"alpha_key": ODD}, ID)])
    except Refused:
        return ("", "")
    before, found, after = text.partition(ODD)
    opened = before.rpartition(tags.string_middle)[2] if tags.string_middle in before else ""
    closed = after.partition(tags.string_closing)[0] if tags.string_closing.strip() else ""
    return (opened, closed) if found and opened and closed else ("", "")


def _proved(form: Form, probe: Probe) -> Form:
    """The form itself, once it has read back what the template writes; NoForm where it can't."""
    for calls in PROOF if form.parallel else [calls[:1] for calls in PROOF]:
        try:
            text = probe.calls(form.input, calls)
        except Refused:
            continue
        opening = (form.start + form.head).strip()
        at = text.find(opening) if opening else text.find(calls[0].name)
        reader = CallReader(form, TOOLS)
        reader.feed(text[max(at, 0) :])
        read = [
            (call.name, dict(call.arguments))
            for call in reader.finish(True).calls
            if isinstance(call, ToolCall)
        ]
        if read != [(call.name, call.arguments) for call in calls]:
            raise NoForm("what the template writes is not read back")
    return form
