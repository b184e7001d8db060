"""While the user reads: what is prefilled of the next turn, what is not, and what stays of it."""

import dataclasses
import logging
import random

import pytest
from pauses import QUESTION, asked, own_words, pause, replied, rewriting, scheduler_over
from readers import Counting, Failing, planner_of, request, together

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine import ahead
from llm_mlx_promptcache.models.kv_settings import KVSettings
from llm_mlx_promptcache.models.loading import load_model

KINDS = ["llama", "gemma3_text", "gpt_oss", "mamba2", "jamba", "qwen3_next", "llama4"]


@pytest.fixture
def loaded(tiny_llama):
    """A tiny model whose template rewrites answers that are history."""
    return rewriting(load_model(str(tiny_llama())))


@pytest.fixture
def cache():
    return PromptCache("500MB")


def two_turns(scheduler, *, steps=None, said="And three?", **more):
    """A question, `steps` of work while the user reads, another question: the two last events."""
    [first] = together(scheduler, asked(QUESTION, **more))
    pause(scheduler, steps)
    following = asked(QUESTION, replied(first.last), said, **more)
    [second] = together(scheduler, following)
    return first.last, second.last


@pytest.mark.parametrize("kind", KINDS)
def test_law_1_every_kind_of_layer_goes_on_from_what_was_computed_ahead(kind, loaded_kind):
    loaded, cache = rewriting(loaded_kind(kind)), PromptCache("500MB")
    scheduler = scheduler_over(loaded, cache, planner=planner_of(16))
    first, second = two_turns(scheduler)
    following = asked(QUESTION, replied(first), "And three?")
    assert second.usage.prefilled == own_words(scheduler, following)
    [cold] = together(scheduler, dataclasses.replace(following, use_cache=False))
    assert second.ids == cold.last.ids
    assert cache.check() == []


@pytest.mark.parametrize("kind", ["mamba2", "jamba"])
def test_what_can_not_be_cut_is_kept_where_the_answer_ends_too(kind, loaded_kind, cache):
    """A next turn may part from what was guessed of it, as with a role that nobody thought of."""
    scheduler = scheduler_over(rewriting(loaded_kind(kind)), cache, planner=planner_of(64))
    [first] = together(scheduler, asked(QUESTION))
    pause(scheduler)
    transcript = scheduler._intake.transcript(asked(QUESTION, replied(first.last), "And three?"))
    end = [one.position for one in transcript.boundaries if one.tier == "assistant"][-1]
    assert cache.fetch(first.last.namespace, [*transcript.ids[:end], 0]).cached == end


def test_law_1_given_up_at_each_step_what_was_computed_is_kept(loaded):
    def turns(steps):
        cache = PromptCache("500MB")
        scheduler = scheduler_over(loaded, cache, planner=planner_of(8))
        first, second = two_turns(scheduler, steps=steps)
        assert cache.check() == []
        assert cache.stats()["memory"]["leased"] == 0
        return first, second, cache.stats()["tokens_ahead"]

    _, without, none = turns(0)
    assert none == 0
    most, kept = turns(None)[2], []
    for steps in range(1, 100):
        _, second, tokens = turns(steps)
        assert second.ids == without.ids
        assert second.usage.cached == without.usage.cached + tokens
        kept.append(tokens)
        if tokens == most:
            break
    # Two steps render, one takes a lease, each other one runs a chunk.
    assert kept == [0, 0, 0, *range(8, most, 8), most]


def test_work_that_was_given_up_goes_on_where_it_was(loaded, cache):
    scheduler = scheduler_over(loaded, cache, planner=planner_of(8))
    [first] = together(scheduler, asked(QUESTION))
    pause(scheduler, 5)
    done = cache.stats()["tokens_ahead"]
    assert done > 0
    together(scheduler, request("Another conversation?", max_tokens=2))
    pause(scheduler)
    following = asked(QUESTION, replied(first.last), "And three?")
    [second] = together(scheduler, following)
    assert second.last.usage.prefilled == own_words(scheduler, following)


def test_each_of_several_who_read_is_thought_of(loaded, cache):
    scheduler = scheduler_over(loaded, cache)
    questions = [f"What comes after {number}?" for number in range(3)]
    firsts = [one.last for one in together(scheduler, *map(asked, questions))]
    pause(scheduler)
    for question, first in zip(questions, firsts, strict=True):
        following = asked(question, replied(first), "And then?")
        [second] = together(scheduler, following)
        assert second.last.usage.prefilled == own_words(scheduler, following)


def test_answers_that_nobody_goes_on_from_are_not_collected(loaded):
    scheduler = scheduler_over(loaded)
    for number in range(12):
        together(scheduler, asked(f"What comes after {number}?", max_tokens=2))
    assert len(scheduler.ahead._answered) == ahead._MOST_ANSWERS
    pause(scheduler)
    assert scheduler.ahead._answered == []


def test_a_turn_that_was_asked_is_not_prepared_any_more(loaded, cache):
    scheduler = scheduler_over(loaded, cache)
    two_turns(scheduler, steps=0)
    assert len(scheduler.ahead._answered) == 1
    assert len(scheduler.ahead._answered[0].prepared.request.messages) == 4


def test_law_16_counters_tell_work_ahead_apart(loaded):
    stats = {}
    for steps in (0, None):
        cache = PromptCache("500MB")
        scheduler = scheduler_over(loaded, cache)
        _, second = two_turns(scheduler, steps=steps)
        stats[steps] = cache.stats()
        assert second.why == f"no cached prompt goes on like this after token {second.usage.cached}"
    before, after = stats[0], stats[None]
    for name in ("hits", "misses", "misses_by_reason"):
        assert before[name] == after[name]
    more = after["tokens_reused"] - before["tokens_reused"]
    assert more == before["tokens_prefilled"] - after["tokens_prefilled"]
    assert (before["tokens_ahead"], after["tokens_ahead"]) == (0, more)
    assert more > 0


def test_a_template_that_changes_nothing_leaves_nothing_to_do(tiny_llama):
    loaded = load_model(str(tiny_llama()))
    counting = Counting(loaded.model)
    scheduler = scheduler_over(dataclasses.replace(loaded, model=counting))
    together(scheduler, asked(QUESTION))
    passes = counting.passes
    assert pause(scheduler) == 3
    assert counting.passes == passes


@pytest.mark.parametrize(
    "more", [{"use_cache": False}, {"warm": True}, {"warm": True, "pin": True}]
)
def test_what_keeps_nothing_or_has_no_answer_is_no_work(loaded, more):
    scheduler = scheduler_over(loaded)
    together(scheduler, asked(QUESTION, **more))
    assert not scheduler.ahead.left


def test_an_answer_that_goes_on_with_one_is_joined_by_front_ends(loaded, cache):
    scheduler = scheduler_over(loaded, cache)
    begun = Message("assistant", "Three, I")
    together(scheduler, asked(QUESTION, begun, continue_final=True))
    pause(scheduler)
    assert cache.stats()["tokens_ahead"] == 0


def test_where_it_is_off_nothing_is_done_or_remembered(loaded):
    scheduler = scheduler_over(loaded, ahead=False)
    together(scheduler, asked(QUESTION))
    assert scheduler.ahead is None


@pytest.mark.parametrize("on_disk", [True, False])
def test_what_is_computed_ahead_is_on_the_disk_where_its_request_is(loaded, tmp_path, on_disk):
    scheduler = scheduler_over(loaded, PromptCache("500MB", DiskStore(tmp_path)))
    [first] = together(scheduler, asked(QUESTION, on_disk=on_disk))
    pause(scheduler)
    scheduler.settle(last=True)
    assert DiskStore(tmp_path).stats()["spans"] == 0 or on_disk
    following = asked(QUESTION, replied(first.last), "And three?")
    own = own_words(scheduler, following)
    [second] = together(scheduler, dataclasses.replace(following, on_disk=on_disk))
    assert second.last.usage.prefilled == own
    later = scheduler_over(loaded, PromptCache("500MB", DiskStore(tmp_path)))
    [again] = together(later, following)
    assert again.last.usage.prefilled == (own if on_disk else again.last.usage.prompt)
    assert again.last.ids == second.last.ids


def test_another_salt_knows_nothing_of_it(loaded, cache):
    scheduler = scheduler_over(loaded, cache)
    [first] = together(scheduler, asked(QUESTION, cache_salt="mine"))
    pause(scheduler)
    following = asked(QUESTION, replied(first.last), "And three?")
    [theirs] = together(scheduler, dataclasses.replace(following, cache_salt="theirs"))
    assert theirs.last.usage.cached == 0
    [mine] = together(scheduler, dataclasses.replace(following, cache_salt="mine"))
    assert mine.last.usage.prefilled == own_words(scheduler, following)


@pytest.mark.parametrize("start", [0, 40, 250, 400])
def test_law_1_quantised_rows_are_computed_ahead_as_the_turn_would(tiny_llama, start):
    loaded = rewriting(load_model(str(tiny_llama(heads=2))))
    scheduler = scheduler_over(loaded, planner=planner_of(16))
    kv = KVSettings(8, 32, start)
    first, second = two_turns(scheduler, kv=kv)
    following = asked(QUESTION, replied(first), "And three?", kv=kv)
    assert second.usage.prefilled == own_words(scheduler, following)
    [cold] = together(scheduler, dataclasses.replace(following, use_cache=False))
    assert second.ids == cold.last.ids


def test_a_long_change_is_begun_and_no_more(loaded, cache, monkeypatch):
    monkeypatch.setattr(ahead, "_MOST_TOKENS", 20)
    scheduler = scheduler_over(loaded, cache, planner=planner_of(16))
    two_turns(scheduler)
    assert cache.stats()["tokens_ahead"] == 20


def test_a_conversation_that_fills_the_context_has_no_next_turn(loaded, cache):
    small = dataclasses.replace(loaded, context_length=300)
    scheduler = scheduler_over(small, cache)
    [first] = together(scheduler, asked(QUESTION, max_tokens=1000))
    assert first.last.usage.prompt + first.last.usage.generated == 300
    assert pause(scheduler) == 1
    assert cache.stats()["tokens_ahead"] == 0


@pytest.mark.parametrize("steps", [0, 2, 5])
def test_what_was_forgotten_is_not_computed_again(loaded, cache, steps):
    scheduler = scheduler_over(loaded, cache, planner=planner_of(8))
    together(scheduler, asked(QUESTION))
    pause(scheduler, steps)
    cache.forget()
    tokens = cache.stats()["tokens_ahead"]
    pause(scheduler)
    assert cache.stats()["tokens_ahead"] == tokens
    assert cache.stats()["memory"]["spans"] == 0
    assert cache.check() == []


def test_law_1_a_failing_device_ends_the_work_and_no_answer(loaded, cache, caplog):
    fails = []
    model = Failing(loaded.model, lambda tokens: fails and tokens.shape[1] == fails[0])
    playing = dataclasses.replace(loaded, model=model)
    scheduler = scheduler_over(playing, cache, planner=planner_of(8))
    [first] = together(scheduler, asked(QUESTION))
    pause(scheduler, 5)
    kept = cache.stats()["tokens_ahead"]
    fails.append(8)
    with caplog.at_level(logging.WARNING):
        pause(scheduler)
    fails.clear()
    assert model.failed == 1
    assert [record.getMessage() for record in caplog.records] == [
        "no next turn is prefilled before it is asked any more: [metal::malloc] no more memory"
    ]
    assert cache.stats()["tokens_ahead"] == kept
    assert cache.check() == []
    following = asked(QUESTION, replied(first.last), "And three?")
    [second] = together(scheduler, following)
    assert not scheduler.ahead.left
    [cold] = together(scheduler, dataclasses.replace(following, use_cache=False))
    assert second.last.ids == cold.last.ids


def test_a_turn_that_the_template_refuses_is_none_to_prepare(loaded, cache, caplog):
    loaded.tokenizer.chat_template = (
        "{% if messages | length > 2 %}{{ raise_exception('no more') }}{% endif %}"
        + loaded.tokenizer.chat_template
    )
    scheduler = scheduler_over(loaded, cache)
    together(scheduler, asked(QUESTION))
    assert pause(scheduler) == 1
    assert cache.stats()["tokens_ahead"] == 0
    assert caplog.records == []


@pytest.mark.parametrize("budget", range(1_000_000, 1_500_000, 100_000))
def test_work_ahead_drives_out_what_the_turn_itself_would_and_no_more(loaded, budget):
    def left(steps):
        cache = PromptCache(budget)
        scheduler = scheduler_over(loaded, cache)
        others = [asked(f"{number}, and what of it? " * 20, max_tokens=2) for number in range(9)]
        namespace = together(scheduler, *others)[0].last.namespace
        scheduler.ahead.drop()
        two_turns(scheduler, steps=steps)
        assert sum(cache.stats()["evicted"].values()) > 0
        assert (cache.stats()["tokens_ahead"] > 0) == (steps is None)
        assert cache.check() == []
        ids = [scheduler._intake.transcript(one).ids for one in others]
        return sum(cache._tree.walk(namespace, one).length for one in ids)

    assert left(None) >= left(0)


def test_a_conversation_that_had_to_leave_memory_is_not_brought_back(loaded, tmp_path):
    cache = PromptCache("500MB", DiskStore(tmp_path))
    scheduler = scheduler_over(loaded, cache)
    together(scheduler, asked(QUESTION))
    scheduler.settle()
    cache.trim_to(memory_bytes=0)
    pause(scheduler)
    assert cache.stats()["tokens_ahead"] == cache.stats()["memory"]["spans"] == 0


@pytest.mark.parametrize("seed", range(3))
def test_law_1_conversations_that_are_read_in_pieces(loaded, seed):
    rng = random.Random(seed)
    print("seed", seed)
    cache = PromptCache("2MB")
    scheduler = scheduler_over(loaded, cache, planner=planner_of(16))
    talks = [[f"Of the year {number}?"] for number in range(3)]
    for _ in range(14):
        talk = rng.choice(talks)
        ask = asked(*talk, max_tokens=rng.randint(1, 20), cache_salt=rng.choice(["", "a"]))
        [warm] = together(scheduler, ask)
        pause(scheduler, rng.randint(0, 9))
        other = scheduler_over(loaded, ahead=False)
        [cold] = together(other, dataclasses.replace(ask, use_cache=False))
        assert warm.last.ids == cold.last.ids
        talk += [replied(warm.last), rng.choice(["And then?", "Why?", "the capital of it"])]
        assert cache.check() == []
    assert cache.stats()["tokens_ahead"] > 0
