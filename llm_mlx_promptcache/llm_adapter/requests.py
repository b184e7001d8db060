"""llm's prompt -> the engine's request, with an earlier turn's settings where this has none."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import llm
from llm.parts import Message as LlmMessage

from ..chat.messages import Message
from ..engine.request import Choice, GenerationRequest, choice_named
from ..models.kv_settings import KVSettings
from ..models.references import shown
from .messages import messages_of
from .options import MlxCachedOptions
from .records import PromptSettings, latest_reference, latest_settings, settings_of

_log = logging.getLogger(__name__)


class Question(NamedTuple):
    """A request, its settings, and the names of tools that the conversation had and lost.

    `prefill` is the answer's beginning: it is in the prompt, and in the answer too. `before` is
    the model that gave the conversation's last answer, "" where unknown.
    """

    request: GenerationRequest
    settings: PromptSettings
    lost_tools: tuple[str, ...] = ()
    prefill: str = ""
    before: str = ""

    def tell_changes(self) -> None:
        """Warn of another model, or of tools that the conversation had and this turn has not."""
        if self.before and self.settings.reference not in ("", self.before):
            _log.warning(
                "this conversation was with %s until now; %s answers from here on",
                shown(self.before),
                shown(self.settings.reference),
            )
        if self.lost_tools:
            _log.warning(
                "this conversation had the tools %s, and this prompt does not: give them again"
                " with -T or --functions, or its beginning is computed again",
                ", ".join(self.lost_tools),
            )


def question_of(prompt: llm.Prompt, model: str, reference: str = "") -> Question:
    """The engine's request for `prompt`; ValueError, one line, if it can't be asked.

    `reference` is the model that llm's name `model` means now.
    """
    options = cast("MlxCachedOptions", prompt.options)
    chain: Sequence[LlmMessage] = prompt.messages
    tools = _tools(prompt.tools)
    before = latest_settings(chain, model)
    settings = _settings(model, options, before, tuple(sorted(tools)), _schema(prompt, chain))
    settings = replace(settings, reference=reference)
    choice = _choice(options, chain, tuple(tools))
    messages = messages_of(prompt)
    _check_words(messages)
    prefill = "" if _answers_tools(chain) else options.prefill or ""
    if prefill:
        _check_prefill(options, choice, settings)
        messages = (*messages, Message("assistant", prefill))
    request = GenerationRequest(
        messages=messages,
        max_tokens=options.most_tokens,
        sampling=options.sampling(),
        stop=tuple(options.stop or ()),
        use_cache=options.cache is not False,
        # A user without logs wants no copy of the conversation on the disk either.
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
        continue_final=bool(prefill),
        if_possible=("thinking",) if options.thinking is None else (),
    )
    lost = tuple(name for name in (before.tools if before else ()) if name not in tools)
    return Question(request, settings, lost, prefill, latest_reference(chain))


def _settings(
    model: str,
    options: MlxCachedOptions,
    before: PromptSettings | None,
    tools: tuple[str, ...],
    schema: Mapping[str, Any] | None,
) -> PromptSettings:
    """The settings of this turn, and the last one's where it sets none."""
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
    """The prompt's schema, or, on a turn that answers calls, the one that the loop began with."""
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
    """The user's choice about calls; a loop that had to call again and again would never end."""
    word = options.tool_choice or "auto"
    chosen = choice_named(word, names)
    if chosen.how == "any" and not names:
        raise ValueError(f"tool_choice is {word!r} and there are no tools; give some with -T")
    return Choice("auto") if chosen.how == "any" and _answers_tools(chain) else chosen


def _answers_tools(chain: Sequence[LlmMessage]) -> bool:
    return bool(chain) and chain[-1].role == "tool"


def _check_words(messages: Sequence[Message]) -> None:
    """ValueError, in the words of whoever typed or piped it, if a prompt can't be asked."""
    if not messages:
        raise ValueError("the prompt is empty; say something, as an argument or through a pipe")
    try:
        messages[-1].content.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the prompt is not UTF-8 (character {error.start + 1} of it); convert it first, for"
            " example with iconv -f latin1 -t utf-8"
        ) from None


def _check_prefill(options: MlxCachedOptions, choice: Choice, settings: PromptSettings) -> None:
    beside = {
        "json_object": options.json_object,
        "a schema": settings.schema is not None,
        f"tool_choice {options.tool_choice}": choice.how == "any",
    }
    for what in (name for name, is_asked in beside.items() if is_asked):
        raise ValueError(
            f"prefill and {what} can't be combined: a form holds from an answer's first word on;"
            " leave one of them out"
        )


def _tools(tools: Iterable[object]) -> dict[str, dict[str, Any]]:
    """Tools in OpenAI's form by their names; of two with one name llm runs the last."""
    return {tool.name: _tool(tool) for tool in tools if isinstance(tool, llm.Tool)}


def _tool(tool: llm.Tool) -> dict[str, Any]:
    parameters = tool.input_schema or {"type": "object", "properties": {}}
    function = {"name": tool.name, "parameters": parameters}
    if tool.description:
        function["description"] = tool.description
    return {"type": "function", "function": function}
