"""How a model writes a call of a tool, and how such text is read.

Models with a format of their own are read by mlx-lm's parsers; all others get a generic one, the
JSON in `<tool_call>` tags that most open models were trained on, and a prompt that says so.
"""

from __future__ import annotations

import json
import re
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from .checks import check_json, check_text
from .generated import ToolCall
from .tool_schemas import canonical_tools

Style = Literal["json", "list", "header", "kimi", "other"]
Parse = Callable[[str, Sequence[Mapping[str, Any]]], Any]

# What mlx-lm's modules read; glm47, laguna and longcat take JSON beside their own form.
_STYLES: dict[str, Style] = {
    "json_tools": "json",
    "glm47": "json",
    "laguna": "json",
    "longcat": "json",
    "mistral": "list",
    "kimi_k2": "kimi",
}
# Where the arguments begin, for the styles that have them as JSON: the group is the name.
_HEADERS = {
    "json": re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*'),
    "list": re.compile(r'\s*\[\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*'),
    "header": re.compile(r"\s*([\w-]+)\s*\[ARGS\]\s*"),
    "kimi": re.compile(
        r"\s*(?:<\|tool_call_begin\|>)?\s*(?:functions\.)?(.+?):\d+\s*"
        r"<\|tool_call_argument_begin\|>\s*"
    ),
}


class CallTokenizer(Protocol):
    """What mlx-lm's `TokenizerWrapper` tells about calls and thinking."""

    tool_call_start: str | None
    tool_call_end: str | None
    tool_parser: Any
    think_start: str | None
    think_end: str | None
    think_start_tokens: tuple[int, ...] | None
    think_end_tokens: tuple[int, ...] | None

    def get_vocab(self) -> dict[str, int]:
        """Ids by token."""


@dataclass(frozen=True)
class CallForm:
    """One way of writing calls: the marks around one, what stands between, and who reads it.

    `special` holds the ids of those marks that are special tokens, which text never is.
    """

    start: str
    end: str
    style: Style
    parse: Parse
    special: tuple[tuple[str, int], ...] = ()
    native: bool = True

    def for_grammar(self) -> CallForm:
        """The form that a grammar can hold the model to: this one, or else the generic one."""
        return GENERIC if self.style == "other" else self

    def header(self, body: str) -> tuple[str, int] | None:
        """A call's name and where its arguments begin, once `body` has got that far."""
        pattern = _HEADERS.get(self.style)
        found = pattern.match(body) if pattern else None
        if found is None:
            return None
        name = found[1]
        try:
            return (json.loads(name) if name.startswith('"') else name), found.end()
        except ValueError:
            return None


@dataclass(frozen=True)
class Thinking:
    """The marks around a model's reasoning, and whether the prompt has opened it already."""

    start: str
    end: str
    opened: bool = False
    start_ids: tuple[int, ...] = ()
    end_ids: tuple[int, ...] = ()


def form_of(tokenizer: CallTokenizer) -> CallForm:
    """The model's own form of calls, or the generic one where mlx-lm knows none."""
    start, parse = tokenizer.tool_call_start, tokenizer.tool_parser
    if not start or parse is None:
        return GENERIC
    module = str(parse.__module__).rpartition(".")[2]
    style = _STYLES.get(module, "other")
    vocabulary = tokenizer.get_vocab()
    if style == "list" and "[ARGS]" in vocabulary:
        style = "header"
    marks = [start, tokenizer.tool_call_end or "", "[ARGS]", *_KIMI_MARKS]
    special = _special(tokenizer, vocabulary, marks)
    if style == "json" and module == "json_tools":
        parse = _parse_generic  # the same JSON, with care for what JSON has no form for
    return CallForm(start, tokenizer.tool_call_end or "", style, parse, special)


def thinking_of(tokenizer: CallTokenizer, prompt_ids: Sequence[int]) -> Thinking | None:
    """The model's marks of reasoning; None where it has none.

    `opened` where `prompt_ids` end inside them; no `start_ids` where they end behind a block that
    the template closed at once, since it asks the model not to think.
    """
    start, end = tokenizer.think_start, tokenizer.think_end
    opening, closing = tokenizer.think_start_tokens, tokenizer.think_end_tokens
    if not (start and end and opening and closing):
        return None
    # Further back, marks are those of earlier answers.
    tail = list(prompt_ids[-len(opening) - len(closing) - _WHITE_TOKENS :])
    opened = _last(tail, opening) > _last(tail, closing)
    declined = _last(tail, closing) >= 0 and not opened
    starts = () if declined else tuple(opening)
    return Thinking(start, end, opened, starts, tuple(closing))


def read_calls(
    form: CallForm, body: str, tools: Sequence[Mapping[str, Any]]
) -> tuple[ToolCall, ...]:
    """The calls in the text between the marks, each with an id of its own; ValueError: unreadable.

    Ids that a model writes itself repeat from turn to turn, so they are not taken.
    """
    try:
        found = form.parse(body, list(tools))
    except Exception as error:
        # `from None`: a parser's error shows the text.
        raise ValueError(f"a call can't be read ({type(error).__name__})") from None
    listed = found if isinstance(found, list) else [found]
    if not listed:
        raise ValueError("a call can't be read (it is empty)")
    return tuple(_as_call(one) for one in listed)


def new_call_id() -> str:
    """An id that no other call has."""
    return f"call_{secrets.token_hex(12)}"


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


def _parse_generic(text: str, tools: Sequence[Mapping[str, Any]]) -> Any:
    return json.loads(text, parse_constant=_refuse, parse_float=_float)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _float(text: str) -> float:
    # JSON takes 1e999; a float does not, and an endless number is no argument.
    return min(max(float(text), -sys.float_info.max), sys.float_info.max)


def _as_call(found: object) -> ToolCall:
    if not isinstance(found, Mapping):
        raise ValueError("a call can't be read (it is no object)")
    name = found.get("name")
    arguments = found.get("arguments", found.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _parse_generic(arguments, ()) if arguments.strip() else {}
    if not isinstance(name, str) or not name or not isinstance(arguments, Mapping):
        raise ValueError("a call can't be read (name or arguments are missing)")
    check_text("a call's name", name)
    check_json("a call's arguments", arguments)
    return ToolCall(name, dict(arguments), new_call_id())


def _special(
    tokenizer: Any, vocabulary: Mapping[str, int], marks: Sequence[str]
) -> tuple[tuple[str, int], ...]:
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    ids = {mark: vocabulary[mark] for mark in marks if mark and mark in vocabulary}
    return tuple((m, i) for m, i in ids.items() if getattr(added.get(i), "special", False))


def _last(ids: Sequence[int], run: Sequence[int]) -> int:
    """Where `run` stands last in `ids`, or -1."""
    size = len(run)
    places = range(len(ids) - size, -1, -1)
    return next((at for at in places if tuple(ids[at : at + size]) == tuple(run)), -1)


# At most so many tokens of white space stand between marks and around them.
_WHITE_TOKENS = 4
_KIMI_MARKS = ("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>")
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

GENERIC = CallForm("<tool_call>", "</tool_call>", "json", _parse_generic, native=False)
