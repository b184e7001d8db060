"""Scripted conversations, and what each request of them should have to compute.

Shared by test_reuse.py, where the counts are assertions, and by benchmarks/reuse.py, which prints
them. Histories are plain data, as front ends keep them: every one goes through JSON.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import families
import tiny_models

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.identity import Identity
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.generated import Generated, ToolCall
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.chat.rendering import render
from llm_mlx_promptcache.chat.transcript import Transcript
from llm_mlx_promptcache.engine.engine import Engine
from llm_mlx_promptcache.engine.events import Finished
from llm_mlx_promptcache.engine.one_machine import scheduler_here
from llm_mlx_promptcache.engine.request import GenerationRequest, Sampling
from llm_mlx_promptcache.models.chat_tokenizer import TemplateTokenizer
from llm_mlx_promptcache.models.loading import LoadedModel, load_model

# What each kind is played with; rows can be cut at any token, the others at checkpoints.
KINDS = {"rows": "llama", "window": "gemma3_text", "hybrid": "qwen3_next"}
IDENTITY = "reuse"

History = list[dict[str, Any]]
Ask = Callable[[History, dict[str, Any]], dict[str, Any]]


class Turn(NamedTuple):
    """One request of a script.

    `say` is the user's message; without it the calls of the last answer get their results. `back`
    messages are taken off the end before. `chat` is which conversation goes on; a new one starts
    with the first `keep` messages of conversation 0. `calls` is how many calls must come at most.
    """

    say: str = ""
    back: int = 0
    chat: int = 0
    keep: int = 1
    calls: int = 0


class Script(NamedTuple):
    """A conversation, or several that belong together; the first message is a system prompt."""

    name: str
    turns: tuple[Turn, ...]
    tools: bool = False
    thinking: bool = False


SCRIPTS = (
    Script("five chat turns", tuple(Turn(f"Question {n}?") for n in range(5))),
    Script("ten tool steps", (Turn("Go.", calls=1), *[Turn(calls=1)] * 9), tools=True),
    Script("parallel tool calls", (Turn("Go.", calls=3), Turn(calls=3), Turn()), tools=True),
    Script(
        "a regenerated answer",
        (Turn("One?"), Turn("Two?"), Turn(back=1), Turn("Three?")),
    ),
    Script(
        "an edited last user message",
        (Turn("One?"), Turn("Two?"), Turn("Two, in other words?", back=2), Turn("Three?")),
    ),
    Script(
        "a fork",
        (
            Turn("One?"),
            Turn("Two?"),
            Turn("Three?"),
            Turn("Another three?", chat=1, keep=5),
            Turn("Four?"),
            Turn("Another four?", chat=1),
        ),
    ),
    Script(
        "two conversations on one system prompt",
        (Turn("One?"), Turn("Eins?", chat=1), Turn("Two?"), Turn("Zwei?", chat=1)),
    ),
)
THINKING_SCRIPTS = (
    Script("four chat turns", tuple(Turn(f"Question {n}?") for n in range(4)), thinking=True),
    Script(
        "two tool loops",
        (Turn("Go.", calls=1), *[Turn(calls=1)] * 2, Turn("On.", calls=1), Turn(calls=1)),
        tools=True,
        thinking=True,
    ),
)

SYSTEM = "You keep a lighthouse, write down every ship that passes, and answer in few words."


def _tool(name: str, field: str, kind: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {field: kind}, "required": [field]}
    function = {"name": name, "description": f"Do {name}.", "parameters": parameters}
    return {"type": "function", "function": function}


TOOLS = (
    _tool("count", "ships", {"type": "integer", "minimum": 0, "maximum": 99}),
    _tool("look", "where", {"enum": ["north", "south"]}),
)

_CALLS = (
    "{%- for call in message.tool_calls or [] %}{% set tool_call = call.function %}"
    '{{ \'\\n<tool_call>\\n{"name": "\' + tool_call.name + \'", "arguments": \''
    " + (tool_call.arguments | tojson) + '}\\n</tool_call>' }}{% endfor %}"
)
_TEMPLATE = (
    "{%- set seen = namespace(user=0) %}{% for message in messages %}"
    "{% if message.role == 'user' %}{% set seen.user = loop.index0 %}{% endif %}{% endfor %}"
    "{%- if tools %}{{ '<|im_start|>system\\n' + messages[0].content + '\\n' }}"
    "{% for tool in tools %}{{ (tool | tojson) + '\\n' }}{% endfor %}{{ '<|im_end|>\\n' }}"
    "{% endif %}{%- for message in messages %}{% if message.role == 'tool' %}"
    "{{ '<|im_start|>user\\n<tool_response>\\n' + message.content }}"
    "{{ '\\n</tool_response><|im_end|>\\n' }}{% elif message.role != 'system' or not tools %}"
    "{{ '<|im_start|>' + message.role + '\\n' }}"
    "[THOUGHT]{{ message.content or '' }}" + _CALLS + "{{ '<|im_end|>\\n' }}"
    "{% endif %}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n[OPENING]' }}{% endif %}"
)
PLAIN = _TEMPLATE.replace("[THOUGHT]", "").replace("[OPENING]", "")
# Reasoning is shown behind the last user message only, as Qwen's and most others' templates do.
_THOUGHT = (
    "{% if message.role == 'assistant' and loop.index0 > seen.user %}"
    "{{ '<think>\\n' + (message.reasoning_content or '') + '</think>' }}{% endif %}"
)
STRIPPING = _TEMPLATE.replace("[THOUGHT]", _THOUGHT).replace("[OPENING]", "<think>\\n")


def write_model(folder: Path, thinking: bool = False) -> Path:
    """A folder with the tiny tokenizer and a template that shows tools, and drops thinking or not.

    It always holds the tiny llama; models of other kinds take only the tokenizer.
    """
    special = ("<think>", "</think>") if thinking else ()
    tiny_models.write_tiny_llama(folder, context=8192, special=special)
    path = folder / "tokenizer_config.json"
    template = STRIPPING if thinking else PLAIN
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    return folder


def load(folder: str, kind: str) -> LoadedModel:
    """A random model of the kind over the folder's tokenizer; kind "" is what is there."""
    loaded = load_model(folder)
    if not kind:
        return loaded
    family = families.BY_NAME[KINDS[kind]]
    own = {**family.own, "vocab_size": loaded.config["vocab_size"]}
    return loaded_as(loaded, dataclasses.replace(family, own=own).build())


def loaded_as(loaded: LoadedModel, model: Any, context: int = 8192) -> LoadedModel:
    """Another model over the same tokenizer."""
    return dataclasses.replace(loaded, model=model, context_length=context)


def engine_over(folder: str, kind: str, store: Path) -> Engine:
    """An engine over what its own cache finds in `store`, as a process that has just started."""
    return Engine(
        lambda _: scheduler_here(
            load(folder, kind), Identity(IDENTITY, IDENTITY), PromptCache("500MB", DiskStore(store))
        )
    )


def message_of(kept: dict[str, Any]) -> Message:
    """A message of a history, its record of generated ids included."""
    return Message(
        kept["role"],
        kept["content"],
        Generated.from_json(kept.get("generated")),
        reasoning=kept.get("reasoning", ""),
        tool_calls=tuple(ToolCall(**call) for call in kept.get("calls", ())),
        tool_call_id=kept.get("tool_call_id", ""),
    )


def answer(engine: Engine, history: History, wanted: dict[str, Any]) -> dict[str, Any]:
    """The engine's answer as plain data: counts, ids, and the message for the history."""
    calls = wanted.pop("calls")
    more = {"tool_choice": "any", "max_calls": calls} if calls else {}
    sampling = Sampling(
        temperature=1.0,
        seed=wanted.pop("seed"),
        logit_bias=tuple(map(tuple, wanted.pop("bias"))),
    )
    messages = tuple(map(message_of, history))
    *_, last = engine.generate(GenerationRequest(messages, sampling=sampling, **more, **wanted))
    assert isinstance(last, Finished)
    last.whole()
    kept = {
        "role": "assistant",
        "content": last.text,
        "reasoning": last.reasoning,
        "calls": [{"name": c.name, "arguments": c.arguments, "id": c.id} for c in last.tool_calls],
        "generated": last.generated().to_json(),
    }
    usage = last.usage._asdict()
    return {"usage": usage, "ids": last.ids, "message": kept}


class PlayedRequest(NamedTuple):
    """One request as it was played.

    `new` is what it should prefill, by the conversation and by nothing that the cache says;
    `prefilled` what it did. `drifted`: rendering the answer again gives other tokens.
    """

    messages: list[Message]
    tools: Sequence[dict[str, Any]]
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    new: int
    prefilled: int
    drifted: bool
    reasoning: int


class Computed(NamedTuple):
    """The work of answering a conversation, and where layers that can't be cut were kept."""

    history: History
    ids: tuple[int, ...]
    kept: tuple[int, ...]


class Ledger:
    """All that a model has computed in a script."""

    def __init__(self, cuttable: bool, keeps: bool) -> None:
        self._cuttable = cuttable
        self._keeps = keeps  # whether the template shows answers as they were, also later on
        self._paths: list[Computed] = []

    def new(self, history: History, transcript: Transcript) -> int:
        """Tokens of a prompt that nobody computed, and one at least.

        What continues a conversation, or a tool loop, has its whole path behind it, however the
        prompt's ids read. Layers that can't be cut begin again where a message ends, or where an
        answer began: its prompt was kept before it, without its last token.
        """
        ids, place = tuple(transcript.ids), 0
        for path in self._paths:
            shared = common(path.ids, ids)
            more = history[len(path.history) :]
            shown = self._keeps or all(message["role"] == "tool" for message in more)
            if shown and history[: len(path.history)] == path.history:
                shared = len(path.ids)
            elif not self._cuttable and shared < len(path.ids):
                shared = max((end for end in path.kept if end <= shared), default=0)
            place = max(place, shared)
        return max(1, len(ids) - place)

    def add(self, history: History, transcript: Transcript, answer: tuple[int, ...]) -> None:
        """A conversation was answered."""
        prompt = tuple(transcript.ids)
        kept = (*(boundary.position for boundary in transcript.boundaries), len(prompt) - 1)
        self._paths.append(Computed(history, prompt + answer, kept))


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of tokens that two paths share from their starts."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def play(
    script: Script,
    ask: Ask,
    tokenizer: TemplateTokenizer,
    *,
    cuttable: bool,
    fingerprint: str = IDENTITY,
    max_tokens: int = 24,
    restart: Callable[[], None] | None = None,
) -> list[PlayedRequest]:
    """All requests of a script; `restart` ends the process between any two of them."""
    ledger = Ledger(cuttable, keeps=not script.thinking)
    chats: dict[int, History] = {0: [{"role": "system", "content": SYSTEM}]}
    played: list[PlayedRequest] = []
    for number, turn in enumerate(script.turns):
        if number and restart is not None:
            restart()
        before = chats[turn.chat] if turn.chat in chats else chats[0][: turn.keep]
        history = json.loads(json.dumps(said(before, turn)))
        tools = TOOLS if script.tools else ()
        messages = [message_of(kept) for kept in history]
        transcript = render(messages, tokenizer, fingerprint=fingerprint, tools=tools)
        wanted = wishes(script, turn, number, tokenizer, max_tokens)
        reply = ask(history, wanted)
        ids, prompt, usage = tuple(reply["ids"]), tuple(transcript.ids), reply["usage"]
        assert usage["prompt"] == len(prompt)
        new, done, thought = ledger.new(history, transcript), usage["prefilled"], usage["reasoning"]
        drifted = drifts(tokenizer, messages, message_of(reply["message"]), ids)
        played.append(PlayedRequest(messages, tools, prompt, ids, new, done, drifted, thought))
        history = [*history, json.loads(json.dumps(reply["message"]))]
        ledger.add(history, transcript, ids)
        chats[turn.chat] = history
    return played


def said(history: History, turn: Turn) -> History:
    """The conversation up to the next answer."""
    history = history[: len(history) - turn.back]
    if turn.say:
        return [*history, {"role": "user", "content": turn.say}]
    calls = history[-1].get("calls", ())
    results = [
        {"role": "tool", "content": f"{call['name']}: {at}, all calm", "tool_call_id": call["id"]}
        for at, call in enumerate(calls)
    ]
    return [*history, *results]


def wishes(
    script: Script, turn: Turn, number: int, tokenizer: TemplateTokenizer, max_tokens: int
) -> dict[str, Any]:
    """The wishes of the request; a random model ends its thinking only if urged to."""
    wanted: dict[str, Any] = {"seed": number, "calls": turn.calls, "bias": []}
    wanted["max_tokens"] = 400 if turn.calls or script.thinking else max_tokens
    if script.tools:
        wanted["tools"] = TOOLS
    if script.thinking:
        [end], _ = tokenizer.encode("</think>")
        wanted["bias"] = [(end, 2.0)]
        if not script.tools:
            wanted["regex"] = "[a-z ]{4,12}"
    return wanted


def drifts(
    tokenizer: TemplateTokenizer, messages: Sequence[Message], said: Message, ids: tuple[int, ...]
) -> bool:
    """True if a client that sends the answer's text back asks with other tokens than `ids`."""
    tools = TOOLS if said.tool_calls else ()
    # No record has this fingerprint, so all is rendered from its text.
    asked, shown = (
        list(render(turns, tokenizer, fingerprint="", tools=tools).ids)
        for turns in (messages, [*messages, said])
    )
    path = [*asked, *ids]
    return shown[: len(path)] != path
