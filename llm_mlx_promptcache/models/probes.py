"""Features that a model's template lacks, found by rendering a few small conversations.

form = find_prompt_form(apply)      # once a template; `PromptForm.to_json` is stored
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from ..chat.mends import Mend
from ..chat.messages import Message, ToolCall
from ..chat.prompt import UNMENDED, Feature, PromptForm, features_of, fit
from ..chat.template_work import TooMuchWork
from ..chat.tool_schemas import canonical_tools

_CALL = ToolCall("find_place", {"place_name": "Lindenquarkstrasse", "wanted": 3}, "kq7w3zt9v")
_TOOLS = canonical_tools(
    [
        {
            "type": "function",
            "function": {
                "name": "find_place",
                "description": "Finds a place on the map of the town.",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "place_name": {"type": "string", "description": "How it is called."},
                        "wanted": {"type": "integer", "description": "How many are wanted."},
                    },
                    "required": ["place_name"],
                },
            },
        }
    ]
)
_ASK = Message("user", "Quovadisne, my dear Zephyrquark?")
_SAID = Message("assistant", "Vostokwards, as ever and again.")
_NEXT = Message("user", "Wembleyward they say it rains.")
_SYSTEM = Message("system", "Speak like Yonkersquark of old.")
_CALLS = Message("assistant", "", tool_calls=(_CALL,))
_BESIDE = Message("assistant", "Xerophytes first, then the call.", tool_calls=(_CALL,))
_RESULT = Message("tool", "Resultquark is in the north.", tool_call_id=_CALL.id)
# Each feature, and conversations in which it is the last that the template is asked for.
_ASKED: tuple[tuple[Feature, tuple[tuple[Message, ...], ...]], ...] = (
    (Feature.WORDS, ((_ASK,), (_ASK, _SAID, _NEXT))),
    (Feature.SYSTEM, ((_SYSTEM, _ASK), (_SYSTEM, _ASK, _SAID, _NEXT))),
    (Feature.TOOLS, ((_ASK,), (_SYSTEM, _ASK, _SAID, _NEXT))),
    (Feature.CALLS, ((_ASK, _CALLS, _RESULT), (_ASK, _CALLS, _RESULT, _SAID, _NEXT))),
    (Feature.BESIDE, ((_ASK, _BESIDE, _RESULT), (_ASK, _BESIDE, _RESULT, _SAID, _NEXT))),
    (Feature.LATER, ((_ASK, _SAID, _SYSTEM, _NEXT), (_ASK, _SAID, _NEXT, _SYSTEM))),
)
_WITH_TOOLS = (Feature.TOOLS, Feature.CALLS, Feature.BESIDE)


class Apply(Protocol):
    """A template's text of messages; raises what the template raises."""

    def __call__(
        self, messages: list[dict[str, Any]], *, add_generation_prompt: bool, **arguments: Any
    ) -> str:
        """Render; `arguments` may hold tools."""


def find_prompt_form(apply: Apply, example: str = "") -> PromptForm:
    """The mends that a template needs; a feature that no mend helps gets none, and requests say so.

    `example` is a call as the template shows calls, if it does (`PromptForm`).
    """
    mends: dict[Feature, tuple[Mend, ...]] = {}
    shown = _RenderedOnce(apply)
    for feature, conversations in _ASKED:
        arguments = {"tools": _TOOLS} if feature in _WITH_TOOLS else {}
        for messages in conversations:
            form = PromptForm(mends, example)
            known = form.start(features_of(messages, tools=bool(arguments)))
            try:
                needed = fit(messages, arguments, shown, form).mends - known
            except TooMuchWork:
                return PromptForm(mends, example)  # nor does the next one end
            except Exception:
                if messages == (_ASK,) and not arguments:
                    return UNMENDED  # a template that shows no user's words is probed no more
                continue  # such requests are checked one by one
            if needed:
                kept = mends.get(feature, ())
                mends[feature] = (*kept, *(mend for mend in Mend if mend in needed))
    return PromptForm(mends, example) if mends else UNMENDED


def find_generic_tools(apply: Apply, form: PromptForm) -> tuple[Mend, ...]:
    """The mends that state tools in the generic prompt and not in the template's own.

    For templates that state tools but not how to call them; `form` is the probes' result.
    """
    shown = _RenderedOnce(apply)
    for mend in (Mend.TOOLS_IN_SYSTEM, Mend.TOOLS_IN_USER):
        tried = PromptForm({**form.mends, Feature.TOOLS: (mend,)})
        try:
            fitted = fit((_ASK,), {"tools": _TOOLS}, shown, tried).mends
        except TooMuchWork:
            return ()
        except Exception:  # noqa: S112 - the other place may do
            continue
        needed = fitted - form.start([Feature.WORDS])
        return tuple(one for one in Mend if one in needed)
    return ()


class _RenderedOnce:
    """A template's renderings, each made once: mends often come to the same messages."""

    def __init__(self, apply: Apply) -> None:
        self._apply = apply
        self._known: dict[str, str | Exception] = {}

    def __call__(self, messages: list[dict[str, Any]], arguments: Mapping[str, Any]) -> str:
        key = json.dumps([messages, dict(arguments)])
        if key not in self._known:
            try:
                self._known[key] = self._apply(messages, add_generation_prompt=True, **arguments)
            except TooMuchWork:
                raise
            except Exception as error:
                self._known[key] = error
        known = self._known[key]
        if isinstance(known, Exception):
            raise known
        return known
