"""What a template shows of tools that it has no place for, and a model's marks of reasoning."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .forms import Reasoning
from .tool_schemas import canonical_tools


@dataclass(frozen=True)
class Thinking:
    """The marks around a model's reasoning, and whether the prompt has opened it already.

    `spaces` are single tokens of white space, such as stand between reasoning and the answer.
    """

    start: str
    end: str
    opened: bool = False
    start_ids: tuple[int, ...] = ()
    end_ids: tuple[int, ...] = ()
    spaces: tuple[int, ...] = ()


def thinking_of(
    marks: Reasoning | None,
    prompt_ids: Sequence[int],
    encode: Callable[[str], Sequence[int]],
) -> Thinking | None:
    """The model's marks of reasoning as ids; None where it has none.

    `opened` where `prompt_ids` end inside them; no `start_ids` where they end behind a block that
    the template closed at once, since it asks the model not to think.
    """
    if marks is None:
        return None
    opening = tuple(encode(marks.start)) if marks.start else ()
    closing = tuple(encode(marks.end))
    # Further back, marks are those of earlier answers.
    tail = list(prompt_ids[-len(opening) - len(closing) - _WHITE_TOKENS :])
    begun = _last(tail, opening) if opening else -1
    # A prompt that shows neither mark asks a model that writes only the closing one to think.
    opened = begun > _last(tail, closing) or (not opening and _last(tail, closing) < 0)
    declined = _last(tail, closing) >= 0 and not opened
    starts = () if declined else opening
    written = [tuple(encode(space)) for space in ("\n\n", "\n", " ")]
    spaces = tuple(ids[0] for ids in written if len(ids) == 1)
    return Thinking(marks.start, marks.end, opened, starts, closing, spaces)


def tool_prompt(tools: Sequence[Mapping[str, Any]]) -> str:
    """The system text for models whose template shows no tools; the same for any order of them.

    It says nothing of what this request wants called, so that all requests share it.
    """
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in canonical_tools(tools))
    return _PROMPT.format(tools=listed)


def plain_turns(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A template's messages without calls and results: these become text as the prompt says.

    Results stand in a user's turn, together with what else the user says there.
    """
    made: list[dict[str, Any]] = []
    in_results = False
    for message in messages:
        turn = plain_turn(message)
        of_tool = message.get("role") == "tool"
        if made and made[-1].get("role") == "user" == turn.get("role") and (in_results or of_tool):
            turn = {**turn, "content": f"{made.pop()['content']}\n{turn['content']}"}
            in_results = True
        else:
            in_results = of_tool
        made.append(turn)
    return made


def with_instructions(
    messages: Sequence[Mapping[str, Any]], text: str, role: Literal["system", "user"]
) -> list[dict[str, Any]]:
    """Messages that tell `text` first of all: behind the system's own words, or the user's."""
    made = [dict(message) for message in messages]
    if role == "user" and made and made[0].get("role") == "system":
        text = f"{made.pop(0).get('content') or ''}\n\n{text}"
    for at, message in enumerate(made[:1] if role == "system" else made):
        if message.get("role") == role:
            parts = [message.get("content") or "", text]
            joined = parts if role == "system" else parts[::-1]
            made[at] = {**message, "content": "\n\n".join(part for part in joined if part)}
            return made
    return [{"role": role, "content": text}, *made]


def plain_turn(message: Mapping[str, Any]) -> dict[str, Any]:
    """One such message."""
    made = dict(message)
    if made.get("role") == "tool":
        text = f"<tool_response>\n{made.get('content') or ''}\n</tool_response>"
        return {"role": "user", "content": text}
    calls = made.pop("tool_calls", None) or ()
    texts = [str(made.get("content") or ""), *(_call_text(call["function"]) for call in calls)]
    return {**made, "content": "\n".join(text for text in texts if text)} if calls else made


def _call_text(function: Mapping[str, Any]) -> str:
    arguments = function["arguments"]
    shown = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    name = json.dumps(function["name"], ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {shown}}}\n</tool_call>'


def _last(ids: Sequence[int], run: Sequence[int]) -> int:
    """Where `run` stands last in `ids`, or -1."""
    size = len(run)
    places = range(len(ids) - size, -1, -1)
    return next((at for at in places if tuple(ids[at : at + size]) == tuple(run)), -1)


# At most so many tokens of white space stand between marks and around them.
_WHITE_TOKENS = 4
_PROMPT = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a JSON object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": "<function-name>", "arguments": <args-json-object>}}
</tool_call>"""
