"""Generated text as a parser takes it, and as a reader of the stream puts it together."""

import json
import re

from llm_mlx_promptcache.chat.answer_parser import AnswerParser
from llm_mlx_promptcache.chat.answer_parts import (
    CallArguments,
    CallName,
    ReasoningDelta,
    TextDelta,
)
from llm_mlx_promptcache.chat.call_forms import Thinking
from llm_mlx_promptcache.chat.grammar import tool_grammar
from llm_mlx_promptcache.chat.hand_forms import GENERIC

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
THINK = Thinking("<think>", "</think>")
OPENED = Thinking("<think>", "</think>", opened=True)
SURE = tool_grammar(TOOLS, True, GENERIC, calls=8)


def call(city="Zürich", **more):
    inner = json.dumps({"name": "weather", "arguments": {"city": city, **more}}, ensure_ascii=False)
    return f"<tool_call>\n{inner}\n</tool_call>"


def collect(text, form=GENERIC, tools=TOOLS, whole=True, size=1, **options):
    """Parts and answer of `text`, fed `size` characters at a time."""
    parser = AnswerParser(form, tools, **options)
    parts = []
    for at in range(0, len(text), size):
        parts += parser.feed(text[at : at + size])
    last, answer = parser.finish(whole=whole)
    return [*parts, *last], answer


def joined(parts):
    """The stream put together: text, reasoning, and calls as (name, arguments as text)."""
    calls = {part.id: [part.name, ""] for part in parts if isinstance(part, CallName)}
    for part in parts:
        if isinstance(part, CallArguments):
            calls[part.id][1] += part.text
    texts = [
        "".join(p.text for p in parts if isinstance(p, k)) for k in (TextDelta, ReasoningDelta)
    ]
    return texts[0], texts[1], {id: tuple(found) for id, found in calls.items()}


def agrees(parts, answer, ids=True):
    """Check that the stream agrees with the answer; `ids`: they are ours."""
    text, reasoning, calls = joined(parts)
    apart = ("", answer.streamed) if answer.streamed else (answer.reasoning, answer.text)
    assert (reasoning, text) == apart
    assert [(id, name) for id, (name, _) in calls.items()] == [
        (one.id, one.name) for one in answer.calls
    ]
    for one in answer.calls:
        assert json.loads(calls[one.id][1]) == one.arguments
        assert not ids or re.fullmatch("call_[0-9a-f]{24}", one.id)
    return [(one.name, dict(one.arguments)) for one in answer.calls]
