"""A call of LangChain's -> the engine's request: tools, formats, settings."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from inspect import isroutine
from typing import Any, NamedTuple, get_origin

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from pydantic import BaseModel

from llm_mlx_promptcache.engine.request import Choice, choice_named

from .server_tools import check_has_function

Tool = Mapping[str, Any] | type | Callable[..., Any] | BaseTool

_FORMATS = ("json_schema", "json_object", "text")
# Keys that tell a tool or function of OpenAI or Anthropic from a JSON Schema.
_FUNCTION_KEYS = frozenset(["parameters", "input_schema", "function"])


class AnswerFormat(NamedTuple):
    """The form that an answer's text must have, if any."""

    schema: Mapping[str, Any] | None = None
    json_object: bool = False


def openai_tools(tools: Iterable[Tool], *, strict: bool | None = None) -> list[dict[str, Any]]:
    """Tools in OpenAI's form. Calls always follow their schemas, so `strict` only closes them."""
    made = []
    for index, tool in enumerate(tools):
        converted = convert_to_openai_tool(_given(index, tool), strict=strict)
        check_has_function(index, converted)  # a tool object may turn out to be one of a server
        function = {k: v for k, v in converted["function"].items() if k != "strict"}
        # The mark itself means nothing to the model, and would change the prompt.
        made.append({"type": "function", "function": function})
    return made


def _given(index: int, tool: Tool) -> Any:
    """A tool as LangChain converts it; ValueError if it is not a function."""
    if not isinstance(tool, Mapping):
        return tool
    check_has_function(index, tool)
    function = tool.get("function", {"name": ""})
    if not (isinstance(function, Mapping) and isinstance(function.get("name"), str)):
        raise ValueError(
            f"tools[{index}].function has no name;"
            ' give {"name": ..., "description": ..., "parameters": {...}}'
        )
    if tool.get("type") == "function" and "function" not in tool:
        # OpenAI's Responses API puts the name beside the type, and LangChain would leave it there.
        return {key: value for key, value in tool.items() if key != "type"}
    return dict(tool)


def tool_names(tools: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of tools in OpenAI's form."""
    return [str(tool["function"]["name"]) for tool in tools]


def choice_of(given: object, tools: Sequence[Mapping[str, Any]]) -> Choice:
    """A `tool_choice` in any form that LangChain's users know; ValueError names an unknown one."""
    names = tool_names(tools)
    if given is None:
        return Choice("auto")
    if isinstance(given, Mapping):
        return _choice_of_dict(given, tools)
    if isinstance(given, bool):
        return Choice("any" if given else "none")
    return choice_named(given if isinstance(given, str) else repr(given), names)


def _choice_of_dict(given: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> Choice:
    """{"type": "function", "function": {"name": ...}}, or Anthropic's {"type": "tool", ...}."""
    function = given.get("function")
    name = function.get("name") if isinstance(function, Mapping) else given.get("name")
    if name is None:
        return choice_of(str(given.get("type", dict(given))), tools)
    if name not in tool_names(tools):
        raise ValueError(
            f"tool_choice names {str(name)[:60]!r}, which is not bound;"
            f" bound are: {', '.join(tool_names(tools)) or 'none'}"
        )
    return Choice("any", str(name))


def format_of(schema: Any) -> dict[str, Any]:
    """A schema (a Pydantic class, a TypedDict, JSON Schema) as OpenAI's `response_format`."""
    if isinstance(schema, Mapping) and schema.get("type") in _FORMATS:
        return dict(schema)
    converted = _json_schema(schema)
    name = str(converted.get("title") or "answer")
    return {"type": "json_schema", "json_schema": {"name": name, "schema": converted}}


def check_schema(schema: object) -> None:
    """ValueError if it is no schema: a union, a list of a class, a plain type, a value."""
    if isinstance(schema, Mapping | BaseTool) or isroutine(schema) or _is_class(schema):
        return
    raise ValueError(
        f"schema is {_named(schema)}, and it must be a Pydantic class, a TypedDict, a dict of JSON"
        " Schema or a function; what may be absent, or is one of several, goes into a field of a"
        " class: found: X | None"
    )


def _is_class(schema: object) -> bool:
    """True if a schema can be read from a class: list[X] is one too, for `isinstance`."""
    if not isinstance(schema, type) or get_origin(schema) is not None or schema is BaseModel:
        return False
    plain = getattr(builtins, schema.__name__, None) is schema or schema.__module__ == "typing"
    return not plain and not issubclass(schema, Enum)


def _named(schema: object) -> str:
    """A type as its user wrote it, cut if it is long; for a value its type alone."""
    if isinstance(schema, type) and get_origin(schema) is None:
        return schema.__name__
    if get_origin(schema) is not None:
        return str(schema)[:60]
    return f"a value of the type {type(schema).__name__}"


def _json_schema(schema: Any) -> dict[str, Any]:
    """The JSON Schema that is meant: LangChain's own conversion can't take recursive models."""
    check_schema(schema)
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return schema.model_json_schema()
    if isinstance(schema, Mapping) and not _FUNCTION_KEYS.intersection(schema):
        return dict(schema)
    return convert_to_json_schema(dict(schema) if isinstance(schema, Mapping) else schema)


def answer_format(given: Any) -> AnswerFormat:
    """The form of the text that a `response_format` asks for; ValueError names a wrong field."""
    if given is None:
        return AnswerFormat()
    form = format_of(given)
    if form["type"] == "text":
        return AnswerFormat()
    if form["type"] == "json_object":
        return AnswerFormat(json_object=True)
    inner = form.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if not isinstance(schema, Mapping):
        raise ValueError(
            "response_format.json_schema.schema is missing;"
            ' give {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}'
        )
    return AnswerFormat(schema)
