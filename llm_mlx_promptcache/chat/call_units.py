"""One call's place in a rendered text: its name, arguments and id, and the pieces between."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from .arguments import json_value
from .form_probes import Call
from .forms import CallLayout, FormPiece, Hole, Input, Keys

_BRACES = 12


class Unit(NamedTuple):
    """A call's place in a text, from its first hole to its last, and the pieces between."""

    start: int
    end: int
    layout: CallLayout
    pieces: tuple[FormPiece, ...]
    keys: Keys = Keys()
    arguments: tuple[int, int] = (0, 0)


def find_call(
    text: str, call: Call, given: Input, whole: str | None = None, start: int = 0
) -> Unit | None:
    """The call in `text`; objects may reach into `whole`, which begins with `text`."""
    value = text.find(call.arguments["alpha_key"], start)
    if value < 0:
        return None
    whole = text if whole is None else whole
    unit = _in_json(whole, call, value, start)
    if unit is None:
        unit = in_tags(whole, call, value, start)
    if unit is None:
        return None
    return _with_id(whole, unit, call, given, start)


def _in_json(text: str, call: Call, value: int, start: int) -> Unit | None:
    """The call whose arguments are JSON: the largest object that is the call, or a header."""
    arguments: tuple[int, int] | None = None
    best: Unit | None = None
    at = value
    for _ in range(_BRACES):
        at = text.rfind("{", start, at)
        if at < 0:
            break
        try:
            shown, end = json.JSONDecoder(strict=False).raw_decode(text, at)
        except ValueError:
            continue
        if end <= value or not isinstance(shown, dict):
            continue
        if shown == call.arguments:
            arguments = (at, end)
            continue
        keys = _keys(shown, call)
        if keys is not None or shown == {call.name: call.arguments}:
            best = _object_unit(text, (at, end), call, arguments, keys)
    if best is not None or arguments is None:
        return best
    name = text.rfind(call.name, start, arguments[0])
    if name < 0:
        return None
    middle = text[name + len(call.name) : arguments[0]]
    pieces = (Hole.NAME, middle, Hole.ARGUMENTS)
    return Unit(name, arguments[1], CallLayout.HEADER, pieces, arguments=arguments)


def _object_unit(
    text: str,
    within: tuple[int, int],
    call: Call,
    arguments: tuple[int, int] | None,
    keys: Keys | None,
) -> Unit | None:
    """The call as the object that stands `within`; without `keys`, its one key is the name."""
    if arguments is None:
        shown = json.dumps(json.dumps(call.arguments))
        at = text.find(shown, *within)
        arguments = (at, at + len(shown)) if at >= 0 else None
    name = text.find(f'"{call.name}"', *within)
    if arguments is None or name < 0:
        return None
    holes = sorted([(name + 1, name + 1 + len(call.name), Hole.NAME), (*arguments, Hole.ARGUMENTS)])
    (a, b, first), (c, d, second) = holes
    layout = CallLayout.KEYED if keys is None else CallLayout.OBJECT
    return Unit(a, d, layout, (first, text[b:c], second), keys or Keys(), arguments)


def _keys(shown: Mapping[str, Any], call: Call) -> Keys | None:
    """The places of name and arguments in an object, at its top or one level deeper."""
    for path, inner in [((), shown), *(((k,), v) for k, v in shown.items())]:
        if not isinstance(inner, Mapping):
            continue
        names = [key for key, value in inner.items() if value == call.name]
        for key, value in inner.items():
            encoded = isinstance(value, str) and _is_text_of(value, call.arguments)
            if names and (value == call.arguments or encoded):
                ids = [(k,) for k, v in shown.items() if v == call.id and k]
                ids += [(*path, k) for k, v in inner.items() if v == call.id]
                name, arguments = (*path, names[0]), (*path, key)
                return Keys(name, arguments, ids[0] if ids else (), encoded)
    return None


def _is_text_of(text: str, arguments: Mapping[str, Any]) -> bool:
    try:
        return bool(json_value(text) == arguments)
    except ValueError:
        return False


def in_tags(text: str, call: Call, value: int, start: int) -> Unit | None:
    """The call whose arguments each stand by themselves, in the given order."""
    key = text.rfind("alpha_key", start, value)
    name = text.rfind(call.name, start, max(key, start))
    last = text.find(call.arguments["beta_key"], value)
    other = text.find("beta_key", value)
    if not 0 <= name < key or not value < other < last:
        return None
    end = last + len(call.arguments["beta_key"])
    inner = text[name + len(call.name) : key]
    return Unit(
        name, end, CallLayout.TAGS, (Hole.NAME, inner, Hole.ARGUMENTS), arguments=(key, end)
    )


def _with_id(text: str, unit: Unit, call: Call, given: Input, start: int) -> Unit:
    """The unit with the call's id as a hole, if it is shown beside the name."""
    if given.named_ids or (
        unit.layout in (CallLayout.OBJECT, CallLayout.KEYED) and not unit.keys.id
    ):
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
    if after >= 0 and after - unit.end < 40 and unit.layout is CallLayout.OBJECT:
        literal = text[unit.end : after]
        return unit._replace(end=after + len(call.id), pieces=(*unit.pieces, literal, Hole.ID))
    return unit
