"""Calls from their parsed parts: each with an id of its own, or the reason why it is invalid."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from .arguments import fitted_object, unfit
from .call_objects import (
    as_arguments,
    first_of,
    named_in,
    new_call_id,
    object_of,
    value_at,
    with_arguments,
)
from .checks import check_json, check_text
from .forms import Form, Hole
from .generated import InvalidCall, ToolCall

_NAME_KEYS = ("name", "tool_name")
_ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")
BEGINNING = 1024  # characters of unreadable text that are searched for its name


class CallBuilder:
    """Builds the calls of one answer; `ids` are those given so far.

    `parameters` are the tools' schemas by their names. `held`: a grammar holds the arguments to
    them. `known` are ids that no call may have.
    """

    def __init__(
        self,
        form: Form,
        parameters: Mapping[str, Any],
        *,
        held: bool,
        known: Collection[str],
    ) -> None:
        self._form, self._held, self._known = form, held, known
        self._name_keys = (*form.keys.name[-1:], *_NAME_KEYS)
        self._argument_keys = (*form.keys.arguments[-1:], *_ARGUMENT_KEYS)
        self.parameters = parameters
        self.names = sorted(parameters, key=len, reverse=True)
        self.ids: set[str] = set()

    def named_in(self, beginning: str) -> str:
        """The name in the beginning of an object; "" if there is none."""
        return named_in(beginning, self._name_keys)

    def own_id(self, name: str, own: str) -> str:
        """The id of a call that writes `own` as its id; "" if it writes none."""
        if not self._form.id or not own:
            return ""
        holes = {Hole.NAME: name, Hole.COUNT: own, Hole.ID: own}
        return "".join(p if isinstance(p, str) else holes.get(p, "") for p in self._form.id)

    def unreadable(self, text: str, why: str) -> InvalidCall | None:
        """The invalid call for `text` that can't be read; None if its beginning names no tool."""
        name = self.named_in(text[:BEGINNING])
        return InvalidCall(name, text, why, new_call_id()) if name in self.parameters else None

    def half(self, text: str) -> str:
        """The name of the tool in an incomplete call; "" if it got no further."""
        name = self.named_in(text[:BEGINNING])
        if name in self.parameters:
            return name
        return next((name for name in self.names if name in text[:BEGINNING]), "")

    def from_text(self, text: str) -> ToolCall | InvalidCall | None:
        """The call in a JSON object; None if it names no tool."""
        read = object_of(text)
        if read is None and (filled := with_arguments(text, self._argument_keys)) != text:
            read = object_of(filled)
        if read is None:
            return self.unreadable(text, "its JSON can't be read")
        return self._from_object(read, text)

    def _from_object(self, read: Mapping[str, Any], text: str) -> ToolCall | InvalidCall | None:
        keys = self._form.keys
        if len(read) == 1:
            [(name, arguments)] = read.items()
            if name in self.parameters and isinstance(arguments, Mapping):
                return self.call(name, dict(arguments), "", text)
        holder = value_at(read, keys.name[:-1])
        inner = read.get("function")
        for one in (holder, inner, read):
            name = first_of(one, self._name_keys)
            if isinstance(name, str) and name:
                break
        else:
            return None
        arguments = value_at(read, keys.arguments)
        if arguments is None:
            arguments = first_of(one, self._argument_keys)
        if name not in self.parameters:
            name = next((n for n in self.names if name.endswith((f".{n}", f":{n}"))), name)
        own = value_at(read, keys.id) if keys.id else None
        return self.call(name, as_arguments(arguments), own if isinstance(own, str) else "", text)

    def call(
        self, name: str, arguments: dict[str, Any] | None, own: str, text: str
    ) -> ToolCall | InvalidCall:
        """The call, valid or invalid, with an id that no other call of the answer has."""
        id = self.free_id(own)
        self.ids.add(id)
        name = name.encode("utf-8", "replace").decode()  # JSON can name half a surrogate pair
        try:
            check_text("a call's id", id)
            check_json("a call's arguments", arguments)
        except ValueError as error:
            return InvalidCall(name, text, str(error), id)
        if name not in self.parameters:
            return InvalidCall(name, text, "no tool has this name", id, arguments)
        if arguments is None:
            return InvalidCall(name, text, "its arguments can't be read", id)
        if not self._held:
            # Arguments held by a grammar fit, and were emitted as they came.
            schema = self.parameters[name]
            arguments = fitted_object(arguments, schema)
            if reason := unfit(arguments, schema):
                return InvalidCall(name, text, reason, id)
        return ToolCall(name, arguments, id)

    def free_id(self, own: str) -> str:
        """The id that the model gave a call, if no other call of the answer has it."""
        return own if own and own not in self.ids and own not in self._known else new_call_id()
