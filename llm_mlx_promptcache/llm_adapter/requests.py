"""llm's prompt -> the engine's request, with what an earlier turn said and this one did not."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import llm
from llm.parts import Message as LlmMessage

from ..engine.request import DEFAULT_MAX_TOKENS, Choice, GenerationRequest, choice_named
from ..models.kv_settings import KVSettings
from ..models.references import shown
from .messages import messages_of
from .options import MlxCachedOptions
from .records import PromptSettings, latest_reference, latest_settings, settings_of

_log = logging.getLogger(__name__)


class Question(NamedTuple):
    """A request, what shaped it, and the names of tools that the conversation had and lost."""

    request: GenerationRequest
    settings: PromptSettings
    lost_tools: tuple[str, ...] = ()


def question_of(prompt: llm.Prompt, model: str, reference: str = "") -> Question:
    """What `prompt` asks of the engine; ValueError, one line, where it can't be asked.

    `reference` is which model it is that llm calls `model` now.
    """
    options = cast("MlxCachedOptions", prompt.options)
    chain: Sequence[LlmMessage] = prompt.messages
    tools = _tools(prompt.tools)
    before = latest_settings(chain, model)
    settings = _settings(model, options, before, tuple(sorted(tools)), _schema(prompt, chain))
    settings = replace(settings, reference=reference)
    _tell_other(latest_reference(chain), reference)
    choice = _choice(options, chain, tuple(tools)) if tools else Choice("auto")
    request = GenerationRequest(
        messages=messages_of(prompt),
        max_tokens=DEFAULT_MAX_TOKENS if options.max_tokens is None else options.max_tokens,
        sampling=options.sampling(),
        stop=tuple(options.stop or ()),
        use_cache=options.cache is not False,
        # Who keeps no logs wants no copy of the conversation on the disk either.
        on_disk=not (llm.user_dir() / "logs-off").exists(),  # type: ignore[no-untyped-call]
        cache_salt=settings.cache_salt,
        tools=tuple(tools.values()),
        tool_choice=choice.how,
        tool=choice.tool,
        schema=settings.schema,
        json_object=bool(options.json_object),
        thinking=settings.thinking,
        kv=KVSettings(settings.kv_bits) if settings.kv_bits else None,
        drafts=options.drafts is not False,
    )
    lost = tuple(name for name in (before.tools if before else ()) if name not in tools)
    if lost:
        _log.warning(
            "this conversation had the tools %s, and this prompt does not: give them again with -T"
            " or --functions, or its beginning is computed anew",
            ", ".join(lost),
        )
    return Question(request, settings, lost)


def _tell_other(before: str, reference: str) -> None:
    """Say that a conversation goes on with another model than the one that answered last."""
    if before and reference and before != reference:
        _log.warning(
            "this conversation was with %s until now; %s answers from here on",
            shown(before),
            shown(reference),
        )


def _settings(
    model: str,
    options: MlxCachedOptions,
    before: PromptSettings | None,
    tools: tuple[str, ...],
    schema: Mapping[str, Any] | None,
) -> PromptSettings:
    """What this turn says, and what the last one said where it is silent."""
    held = before or PromptSettings(model)
    return PromptSettings(
        model,
        held.thinking if options.thinking is None else options.thinking,
        held.kv_bits if options.kv_bits is None else options.kv_bits,
        held.cache_salt if options.cache_salt is None else options.cache_salt,
        tools,
        schema,
    )


def _schema(prompt: llm.Prompt, chain: Sequence[LlmMessage]) -> Mapping[str, Any] | None:
    """The prompt's schema, or on a turn that answers calls the one that the loop began with."""
    if prompt.schema is not None:
        return cast("Mapping[str, Any]", prompt.schema)
    called = len(chain)
    while called and chain[called - 1].role == "tool":
        called -= 1
    if called in (0, len(chain)):
        return None
    before = settings_of(chain[called - 1])
    return None if before is None else before.schema


def _choice(options: MlxCachedOptions, chain: Sequence[LlmMessage], names: Sequence[str]) -> Choice:
    """What the user said of calls; a loop that must call again and again would have no end."""
    chosen = choice_named(options.tool_choice or "auto", names)
    answers_result = bool(chain) and chain[-1].role == "tool"
    return Choice("auto") if chosen.how == "any" and answers_result else chosen


def _tools(tools: Iterable[object]) -> dict[str, dict[str, Any]]:
    """Tools in OpenAI's form by their names; of two with one name llm runs the last."""
    return {tool.name: _tool(tool) for tool in tools if isinstance(tool, llm.Tool)}


def _tool(tool: llm.Tool) -> dict[str, Any]:
    parameters = tool.input_schema or {"type": "object", "properties": {}}
    function = {"name": tool.name, "parameters": parameters}
    if tool.description:
        function["description"] = tool.description
    return {"type": "function", "function": function}
