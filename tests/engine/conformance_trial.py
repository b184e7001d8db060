"""One family's played model, asked: what it is asked, what it writes then, what must come of it."""

import json
from collections.abc import Sequence
from typing import Any

from conversations import common
from jinja2 import TemplateError
from played_families import CALL_IDS, THOUGHT, Call, Family
from scripted_model import SPLIT

from llm_mlx_promptcache.chat.answer_parts import (
    CallArguments,
    CallName,
    ReasoningDelta,
    TextDelta,
)
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.chat.rendering import render
from llm_mlx_promptcache.engine.engine import Engine
from llm_mlx_promptcache.engine.events import Event, Finished
from llm_mlx_promptcache.engine.preparation import arguments_of
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.models.chat_tokenizer import TemplateTokenizer
from llm_mlx_promptcache.models.loading import LoadedModel

ANY = {"type": "string", "description": "A value."}
FIND = {
    "type": "function",
    "function": {
        "name": "find_place",
        "description": "Find a place.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": ANY,
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "count": {"type": "integer"},
                "ratio": {"type": "number"},
                "far": {"type": "boolean"},
                "tags": {"type": "array", "items": {"type": "string"}},
                "where": {"type": "object"},
            },
            "required": [],
        },
    },
}
TIDE = {
    "type": "function",
    "function": {
        "name": "tide",
        "description": "Read how high the water stands.",
        "parameters": {"type": "object", "properties": {"harbour": ANY}, "required": ["harbour"]},
    },
}
HARBOUR = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look at it.",
        "parameters": {
            "type": "object",
            "properties": {"harbour": {"type": "string", "description": "Which of the harbours"}},
            "required": ["harbour"],
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "array", "items": {"type": "integer"}, "maxItems": 4},
        "wet": {"type": ["boolean", "null"]},
    },
    "required": ["city", "days", "wet"],
    "additionalProperties": False,
}
DOCUMENT = {"city": 'Zürich "Nord"', "days": [1, -2], "wet": None}
# Characters of two to four bytes, whose tokens may part inside of them; quotes, lines, a list.
WORDS = 'It is 21 °C in Zürich 東京 😀, "so" they say:\n\n- one\n- two <b>x</b> {"a": [1]} `c`'
ONE: Call = ("find_place", {"city": "Paris"})
TWO: list[Call] = [("find_place", {"city": "Rome", "far": True}), ("tide", {"harbour": "Bari"})]
FORCED: Call = ("get_weather", {"city": "Paris"})
# Long for a limit in characters, and few tokens.
LONG: Call = ("find_place", {"city": "=" * 4096})
LOOP: list[Call] = [
    ("find_place", {"city": f"Par{SPLIT}is", "count": 3}),
    ("tide", {"harbour": f"Le Ha{SPLIT}vre"}),
    ("find_place", {"where": {"name": f"Rou{SPLIT}en"}}),
]
ODD: dict[str, dict[str, Any]] = {
    "quotes": {"city": 'say "hi", it\'s \\ so', "note": "'single' \"double\""},
    "newlines": {"city": "one\ntwo\n\nthree", "note": "tab\there"},
    "unicode": {"city": "Zürich 東京 😀", "note": "…\u2028é"},
    "nested": {"where": {"lat": 1.5, "x": {"tags": ['b "c"', ["y, z"], None, True]}}},
    "null": {"city": "x", "note": None},
    "empty": {"city": "", "tags": [], "where": {}},
    "large ints": {"count": 9_007_199_254_740_993},
    "larger ints": {"count": -(2**64) - 1},
    "floats": {"ratio": 1e-07, "where": {"a": 0.1, "b": 1.5e300}},
    "text like numbers": {"city": "123", "tags": ["true", "1"]},
    "text like null": {"city": "null", "note": "null"},
    "outer spaces": {"city": "  two before", "note": "behind  "},
}


class WrongCell(Exception):
    """A cell found something other than the right result."""


def same(what: str, got: object, wanted: object) -> None:
    """WrongCell where two values differ, by type too."""
    if got != wanted or repr(got) != repr(wanted):
        raise WrongCell(f"{what}: {str(got)[:200]!r}, not {str(wanted)[:200]!r}")


def odd_values(family: Family) -> dict[str, dict[str, Any]]:
    """The arguments of ODD and the family's own marks, by what is odd about them."""
    odd = {name: one for name, one in ODD.items() if family.nulls or name != "text like null"}
    return {**odd, "its own marks": {"city": f"a {family.marks} b", "note": "c"}}


def script(family: Family) -> dict[str, str]:
    """The family's texts, by the cue at the end of its prompt."""
    thought = family.thought() if family.thinks else ""
    unclosed = family.thought().partition(THOUGHT)[0] + THOUGHT

    def words(text: str) -> str:
        return thought + family.words + text

    def calls(made: Sequence[Call]) -> str:
        return thought + family.writes(made) + family.stop

    odd = odd_values(family)
    return {
        "A plain question": words(WORDS),
        "You keep a lighthouse": words("The system prompt is read."),
        "how high the water stands": words("The tool is read."),
        "Which of the harbours": words("The parameter is read."),
        "Call once": calls([ONE]),
        "Call if forced": calls([FORCED]),
        "Call at length": calls([LONG]),
        "Call by mistake": calls([("find_palace", {"city": "Paris"})]),
        "Call and forget": calls([("tide", {"town": "Paris"})]),
        **({} if "parallel calls" in family.lacks else {"Call twice": calls(TWO)}),
        **{f"Say odd {name}": calls([("find_place", one)]) for name, one in odd.items()},
        "three metres": words("The result is read."),
        "Then another": words("The second question is read."),
        "Do think": family.thought() + family.words + WORDS,
        "Do not think": family.words + WORDS,
        "Begin to wonder": family.thought("I see a whale.") + family.words + "No words.",
        "I see a whale.": words("The thought is read."),
        "Do only think": unclosed,
        "Call in thought": unclosed + family.writes([FORCED]),
        "Write a document": words(json.dumps(DOCUMENT, ensure_ascii=False)),
        "Travel on": calls([LOOP[0]]),
        "one is done": calls([LOOP[1]]),
        "two is done": calls([LOOP[2]]),
        "three is done": words(f"We are the{SPLIT}re."),
    }


class Trial:
    """A family's played model, asked; `streams` is where deltas and answers differed."""

    def __init__(self, family: Family, loaded: LoadedModel, engine: Engine) -> None:
        self.family = family
        self.loaded = loaded
        self.engine = engine
        self.streams: list[str] = []
        self.streamed = 0
        self._tokenizer = TemplateTokenizer(loaded.tokenizer)

    def ask(self, *said: str | Message | Finished, **more: Any) -> Finished:
        """One answer; a turn is the user's text, a message, or an answer that came before."""
        more.setdefault("max_tokens", 500)
        request = GenerationRequest(tuple(map(_message, said)), **more)
        events = list(self.engine.generate(request))
        finished = events[-1]
        assert isinstance(finished, Finished)
        self.streamed += len(events)
        self.streams += [f"{said[-1]}"[:40] + f": {one}" for one in _parted(events, finished)]
        return finished

    @property
    def shows_thoughts(self) -> bool:
        """True if the template has a place for reasoning, whatever the model does."""
        return self._tokenizer.reasons

    def new(self, before: Sequence[Any], first: Finished, *more: Any, **how: Any) -> int:
        """Tokens of the second prompt that neither the first one nor its answer holds."""
        one = self._prompt([*before], first.fingerprint, how)
        two = self._prompt([*before, first, *more], first.fingerprint, how)
        return len(two) - common([*one, *first.ids], two)

    def _prompt(self, said: Sequence[Any], fingerprint: str, how: dict[str, Any]) -> Sequence[int]:
        messages = tuple(map(_message, said))
        request = GenerationRequest(messages, **how)
        given = arguments_of(request, self._tokenizer.thinking_argument)
        return render(
            messages,
            self._tokenizer,
            fingerprint=fingerprint,
            tools=request.tools,
            template_arguments=given,
        ).ids

    def shows_reasoning(self, *said: Any) -> bool:
        """True if the template, rendered by transformers alone, shows earlier reasoning."""
        turns = []
        for message in map(_message, said):
            turn = {"role": message.role, "content": message.content}
            if message.reasoning:
                turn |= {"reasoning_content": message.reasoning, "thinking": message.reasoning}
            turns.append(turn)
        shown = self._rendered(turns, enable_thinking=True, thinking=True)
        return any(message.reasoning in shown for message in map(_message, said[1:-1]))

    def rendered_calls(self, calls: Sequence[Call]) -> str:
        """An answer of calls as transformers alone renders the template; "" where it refuses."""
        made = [
            {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
            for id_, (name, arguments) in zip(CALL_IDS, calls, strict=False)
        ]
        answer = {"role": "assistant", "content": "", "tool_calls": made}
        try:
            return self._rendered([{"role": "user", "content": "Go"}, answer])
        except TemplateError:
            return ""

    def _rendered(self, turns: Sequence[dict[str, Any]], **more: Any) -> str:
        """The template's text, made by transformers and by nothing of ours."""
        inner = self.loaded.tokenizer._tokenizer
        prompt = bool(turns) and turns[-1]["role"] == "user"
        text = inner.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=prompt, **more
        )
        return str(text)

    def drifts(self, answer: Finished) -> bool:
        """True if the answer's text does not encode to the tokens that were generated."""
        kept = [token for token in answer.ids if token not in self._tokenizer.stop_ids]
        return self._tokenizer.encode(self._tokenizer.decode(kept))[0] != kept


def _message(turn: str | Message | Finished) -> Message:
    if isinstance(turn, str):
        return Message("user", turn)
    if isinstance(turn, Message):
        return turn
    return Message(
        "assistant",
        turn.text,
        turn.generated(),
        reasoning=turn.reasoning,
        tool_calls=turn.tool_calls,
    )


def _parted(events: Sequence[Event], finished: Finished) -> list[str]:
    """The places where the deltas, put together, are not the answer's parts."""
    text = "".join(one.text for one in events if isinstance(one, TextDelta))
    reasoning = "".join(one.text for one in events if isinstance(one, ReasoningDelta))
    calls = [(one.id, one.name) for one in events if isinstance(one, CallName)]
    arguments = {id_: "" for id_, _ in calls}
    for one in events:
        if isinstance(one, CallArguments):
            arguments[one.id] += one.text
    pairs: list[tuple[str, Any, Any]] = [
        ("text", text, finished.text),
        ("reasoning", reasoning, finished.reasoning),
    ]
    if not finished.cut:  # else a call was begun that isn't whole
        called = [json.loads(one or "null") for one in arguments.values()]
        pairs.append(("calls", calls, [(one.id, one.name) for one in finished.tool_calls]))
        pairs.append(("arguments", called, [dict(one.arguments) for one in finished.tool_calls]))
    return [f"{name} {told!r}, not {whole!r}" for name, told, whole in pairs if told != whole]


def right_words(trial: Trial, answer: Finished, words: str, *, thinks: bool | None = None) -> None:
    """The answer is these words, and its reasoning what the model thought."""
    thought = THOUGHT if (trial.family.thinks if thinks is None else thinks) else ""
    same("text", answer.text, words)
    same("reasoning", answer.reasoning, thought)
    same("calls", (answer.tool_calls, answer.invalid_calls, answer.cut), ((), (), ""))
    same("reason", answer.reason, "stop")


def right_calls(trial: Trial, answer: Finished, calls: Sequence[Call]) -> None:
    """The answer is these calls and nothing else."""
    found = [(one.name, dict(one.arguments)) for one in answer.tool_calls]
    same("calls", found, [(name, json.loads(_plain(arguments))) for name, arguments in calls])
    same("beside", (answer.text, answer.invalid_calls, answer.cut), ("", (), ""))
    same("reasoning", answer.reasoning, THOUGHT if trial.family.thinks else "")
    same("reason", answer.reason, "tool_calls")


def _plain(arguments: Any) -> str:
    return json.dumps(arguments).replace(json.dumps(SPLIT)[1:-1], "")
