"""Text for tools that a template has no place for, and a model's marks of reasoning."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .forms import Form, Hole, Reasoning, marks_in
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
    prompt: str,
    encode: Callable[[str], Sequence[int]],
) -> Thinking | None:
    """The model's marks of reasoning as ids; None if it has none.

    `opened` if `prompt`, or the end of one, ends inside them; no `start_ids` if it ends behind a
    block that the template closed at once to ask for no thinking. Text decides: if a mark is no
    single token, its ids depend on its neighbours.
    """
    if marks is None:
        return None
    opening = tuple(encode(marks.start)) if marks.start else ()
    closing = tuple(encode(marks.end))
    begun, ended = _last_marks(marks, prompt)
    opened = begun > ended
    declined = ended >= 0 and not opened
    starts = () if declined else opening
    written = [tuple(encode(space)) for space in ("\n\n", "\n", " ")]
    spaces = tuple(ids[0] for ids in written if len(ids) == 1)
    return Thinking(marks.start, marks.end, opened, starts, closing, spaces)


def tool_prompt(tools: Sequence[Mapping[str, Any]], example: str = "") -> str:
    """The system text for models whose template shows no tools; the same for any order of them.

    It does not name the tool that this request wants, so that all requests share it. `example` is a
    call in the model's own form; without it the generic form is described.
    """
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in canonical_tools(tools))
    if example:
        return _TOLD.format(tools=listed) + _OWN.format(example=example)
    return _PROMPT.format(tools=listed)


def call_example(form: Form) -> str:
    """A call in a form whose arguments are one object; "" for other forms."""
    if not form.as_json or form.keys.encoded:
        return ""
    call = "".join(piece if isinstance(piece, str) else _SHOWN[piece] for piece in form.call)
    return (form.start + call + form.end).strip()


def plain_turns(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A template's messages without calls and results: these become text as the prompt says.

    Results go into a user's turn, together with the user's other text there.
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
    """Messages with `text` in front: behind the system's own words, or before the user's."""
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


def _last_marks(marks: Reasoning, prompt: str) -> tuple[int, int]:
    """The last places of both marks at the very end of the prompt, or -1."""
    tail = prompt[-len(marks.start) - len(marks.end) - _BESIDE :]
    begun, ended = tail.rfind(marks.start) if marks.start else -1, tail.rfind(marks.end)
    last = marks.start if begun > ended else marks.end
    behind = tail[max(begun, ended, 0) :].removeprefix(last)
    # Behind another mark they are those of an earlier message.
    other = len(behind) > _BESIDE or any(mark[0] in "<[" for mark in marks_in(behind))
    return (-1, -1) if other else (begun, ended)


# The most characters of white space, or of a first word, between marks and behind them.
_BESIDE = 24
_SHOWN = {
    Hole.NAME: "<function-name>",
    Hole.ARGUMENTS: "<args-json-object>",
    Hole.ID: "<call-id>",
    Hole.COUNT: "0",
}
_TOLD = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

"""
_OWN = """For each function call, write the function's name and its arguments as a JSON object in \
exactly this form:
{example}"""
_GENERIC = """For each function call, return a JSON object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": "<function-name>", "arguments": <args-json-object>}}
</tool_call>"""
_PROMPT = _TOLD + _GENERIC
