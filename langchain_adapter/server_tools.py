"""Tools that run on a provider's servers, told from functions: no server is here to run them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A dict with one of these is a function, in any provider's form.
_FUNCTION_KEYS = frozenset(["function", "parameters", "input_schema", "toolSpec", "properties"])
# The types of JSON Schemas, and of functions in the form of OpenAI's Responses API.
_PLAIN_TYPES = frozenset(["function", "object"])


def check_has_function(index: int, tool: Mapping[str, Any]) -> None:
    """ValueError, by the kind's name, for a tool in a dict that its provider runs."""
    kind = _kind(tool)
    if kind == "function_declarations":
        raise ValueError(
            f"tools[{index}] holds Google's function_declarations; give each of them as a tool"
        )
    if kind:
        raise ValueError(
            f"tools[{index}] is of the kind {kind[:60]!r}, which only its provider's servers run,"
            " and this model runs on your machine; leave it out, or give a function that does it"
        )


def _kind(tool: Mapping[str, Any]) -> str:
    """A provider's name for a tool of its own; "" for a function."""
    if _FUNCTION_KEYS.intersection(tool):
        return ""
    kind = tool.get("type")
    if isinstance(kind, str):  # OpenAI's, Anthropic's, xAI's, Mistral's
        return "" if kind in _PLAIN_TYPES else kind
    if "name" in tool or "title" in tool:
        return ""
    # Google's and Bedrock's: the key is the kind, and its value the configuration.
    return next((str(key) for key, value in tool.items() if isinstance(value, (Mapping, list))), "")
