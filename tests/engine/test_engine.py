"""Engine: counts of what is reused, errors, abandoned readers."""

import json
import threading

import pytest
from cache_counters import counted

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.messages import Generated, Message
from llm_mlx_promptcache.engine.events import Finished, Progress, TextDelta
from llm_mlx_promptcache.engine.request import GenerationRequest, Sampling

SYSTEM = Message("system", "You are a lighthouse keeper. " * 12)


def ask(engine, *messages, **more):
    """The last event of an answer."""
    request = GenerationRequest(tuple(messages), **{"max_tokens": 8, **more})
    *_, last = engine.generate(request)
    assert isinstance(last, Finished)
    return last


def answer_of(event):
    return Message("assistant", event.text, Generated.of(event.ids, event.text, event.fingerprint))


def user(text):
    return Message("user", text)


def test_each_turn_prefills_only_what_is_new(folder, engine_of, cache):
    engine = engine_of(folder, cache)
    history, path = [SYSTEM, user("One?")], 0
    for turn in range(5):
        event = ask(engine, *history)
        usage = event.usage
        assert usage.cached == path
        assert usage.prefilled == usage.prompt - path
        cold = ask(engine, *history, use_cache=False)
        assert (cold.ids, cold.usage.cached) == (event.ids, 0)
        path = usage.prompt + usage.generated
        history += [answer_of(event), user(f"And {turn}?")]


def test_a_regenerated_answer_and_a_fork_reuse_all_that_they_share(folder, engine_of, cache):
    engine = engine_of(folder, cache)
    first = ask(engine, SYSTEM, user("One?"))
    again = ask(engine, SYSTEM, user("One?"), sampling=Sampling(temperature=1, seed=1))
    assert again.usage.prefilled == 1
    fork = ask(engine, SYSTEM, user("Two, and some more?"))
    shared = len("One?")  # at most the question differs
    assert 0 < first.usage.prompt - fork.usage.cached <= shared + 40
    other = ask(engine, SYSTEM, user("One?"), cache_salt="somebody else")
    assert other.usage.cached == 0


def test_another_process_goes_on_from_the_disk(folder, engine_of, tmp_path):
    first_engine = engine_of(folder, PromptCache(disk=DiskStore(tmp_path)))
    first = ask(first_engine, SYSTEM, user("One?"))
    first_engine.close()
    store = DiskStore(tmp_path)
    second = ask(
        engine_of(folder, PromptCache(disk=store)),
        SYSTEM,
        user("One?"),
        answer_of(first),
        user("Two?"),
    )
    assert second.usage.cached == first.usage.prompt + first.usage.generated
    assert store.check() == []


def test_events_are_progress_then_text_then_the_end(folder, engine_of):
    events = list(engine_of(folder).generate(GenerationRequest((user("One?"),), max_tokens=8)))
    kinds = [type(event) for event in events]
    assert kinds[0] is Progress
    assert kinds == sorted(kinds, key=[Progress, TextDelta, Finished].index)
    done = [event.done for event in events if isinstance(event, Progress)]
    assert done == sorted(done)
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == events[-1].text


def test_a_seed_gives_the_same_answer_and_others_another(folder, engine_of):
    engine = engine_of(folder)
    answers = [
        ask(engine, user("One?"), sampling=Sampling(temperature=2, seed=seed)).ids
        for seed in (0, 0, 1, 2)
    ]
    assert answers[0] == answers[1]
    assert len(set(answers)) > 1


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ((), "empty"),
        ((user("word " * 3000),), "context"),
    ],
)
def test_a_request_that_can_not_be_answered_is_told_in_one_line(
    folder, engine_of, cache, messages, words
):
    engine = engine_of(folder, cache)
    ask(engine, user("One?"))
    before = counted(cache)
    with pytest.raises(ValueError, match=words) as caught:
        ask(engine, *messages)
    assert "\n" not in str(caught.value)
    assert counted(cache) == before
    assert ask(engine, user("One?")).usage.prefilled == 1


def test_limits_that_make_no_sense_are_refused_by_name():
    with pytest.raises(ValueError, match="max_tokens is 0"):
        GenerationRequest((user("a"),), max_tokens=0)
    with pytest.raises(ValueError, match="top_p is 2"):
        Sampling(top_p=2)


def test_a_reader_that_stops_early_frees_the_engine_and_keeps_what_was_computed(
    folder, engine_of, cache
):
    engine = engine_of(folder, cache)
    events = engine.generate(GenerationRequest((SYSTEM, user("One?")), max_tokens=1000))
    for event in events:
        if isinstance(event, TextDelta):
            break
    events.close()
    after = ask(engine, SYSTEM, user("One?"))
    assert after.usage.prefilled == 1


def test_many_threads_ask_one_engine(folder, engine_of, cache):
    engine = engine_of(folder, cache)
    answers = {}

    def work(number):
        answers[number] = ask(engine, SYSTEM, user(f"Question {number}?"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    assert sum(event.usage.cached == 0 for event in answers.values()) == 1


def test_a_closed_engine_refuses(folder, engine_of):
    engine = engine_of(folder)
    ask(engine, user("One?"))
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        ask(engine, user("One?"))


def test_nothing_of_a_conversation_is_in_names_or_in_a_repr(folder, engine_of, tmp_path):
    cache = PromptCache(disk=DiskStore(tmp_path))
    engine = engine_of(folder, cache)
    ask(engine, user("xylophone"))
    engine.close()
    names = [str(path) for path in tmp_path.rglob("*")]
    assert not any("xylophone" in name for name in [*names, json.dumps(cache.stats())])
    assert "xylophone" not in repr(user("xylophone"))


def test_a_token_that_is_none_of_the_model_s_is_refused(tiny_llama, engine_of):
    """MLX would read behind the embedding: whatever lies there, another time something else."""
    engine = engine_of(tiny_llama(vocab=200))
    ask = GenerationRequest((Message("user", "Hello the capital of the answer"),), max_tokens=2)
    with pytest.raises(ValueError, match=r"holds token \d+ and the model's are 0 to 199; .* see /"):
        list(engine.generate(ask))
