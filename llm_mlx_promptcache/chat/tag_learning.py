"""The marks around each argument of a call, learned by rendering other values."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from typing import NamedTuple

from .call_units import Unit, in_tags
from .form_probes import ARGUMENTS, ID, LIST, NAMES, NUMBERS, ODD, Call, Probe, Refused
from .forms import KEY, CallLayout, Form, Hole, Input, Literals, NoForm, Strings, Tags
from .text_edges import common_end, common_start, from_edge, to_edge


def with_tags(probe: Probe, given: Input, form: Form, one: str, unit: Unit) -> Form:
    """Learn the marks around each argument; strings and other values may have their own."""
    call = Call(NAMES[0], ARGUMENTS[0], ID)
    strings = _marks(one, unit, call)
    numbers = Call(NAMES[0], NUMBERS, ID)
    try:
        text = probe.calls(given, [numbers])
    except Refused:
        text = ""  # it takes strings only
    shown = Call(NAMES[0], {key: str(value) for key, value in NUMBERS.items()}, ID)
    other_unit = in_tags(text, shown, text.rfind(shown.arguments["alpha_key"]), 0)
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
        # Quotes inside marks belong to the spelling of strings, not to the marks.
        tags = replace(tags, string_middle=tags.middle, string_closing=tags.closing)
    wrap, values = _wrap(probe, given, tags), _literals(probe, given)
    tags = replace(tags, strings=encoding, wrap=wrap, values=values)
    return _refitted(form, unit, tags, one, CallLayout.INLINE if inline else CallLayout.TAGS)


def _refitted(form: Form, unit: Unit, tags: Tags, one: str, layout: CallLayout) -> Form:
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
    pieces[at + 1 :] = [foot]
    return replace(form, layout=layout, call=tuple(p for p in pieces if p != ""), tags=tags)


class _PairMarks(NamedTuple):
    opening: str
    middle: str
    closing: str
    between: str


def _marks(text: str, unit: Unit, call: Call) -> _PairMarks:
    """The marks around two arguments: each literal is found twice."""
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
    return _PairMarks(opening, middle, closing, rest[: len(rest) - len(opening)])


def _encoding(probe: Probe, given: Input) -> Strings:
    """The spelling of a string's characters."""
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
    escaped = (html.escape(ODD), html.escape(ODD, quote=False))
    return Strings.HTML if any(one in text for one in escaped) else Strings.RAW


def _literals(probe: Probe, given: Input) -> Literals:
    """The spelling of lists: as Python's repr has them, or JSON."""
    try:
        text = probe.calls(given, [Call(NAMES[0], {"alpha_key": LIST}, ID)])
    except Refused:
        return Literals.JSON
    return Literals.PYTHON if repr(LIST) in text else Literals.JSON


def _wrap(probe: Probe, given: Input, tags: Tags) -> tuple[str, str]:
    """The wrapping of an odd string that a plain one has not (XML's CDATA), or nothing."""
    try:
        text = probe.calls(given, [Call(NAMES[0], {"alpha_key": ODD}, ID)])
    except Refused:
        return ("", "")
    before, found, after = text.partition(ODD)
    opened = before.rpartition(tags.string_middle)[2] if tags.string_middle in before else ""
    closed = after.partition(tags.string_closing)[0] if tags.string_closing.strip() else ""
    return (opened, closed) if found and opened and closed else ("", "")
