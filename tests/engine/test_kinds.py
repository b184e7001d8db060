"""The engine over every kind of layer: each turn prefills what is new, answers stay the same."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.identity import Identity
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.messages import Generated, Message
from llm_mlx_promptcache.engine import forward
from llm_mlx_promptcache.engine import prefill as prefilling
from llm_mlx_promptcache.engine.engine import Engine
from llm_mlx_promptcache.engine.events import Finished
from llm_mlx_promptcache.engine.one_machine import scheduler_here
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.models.kv_settings import KVSettings

KINDS = ["llama", "gemma3_text", "gpt_oss", "mamba2", "jamba", "qwen3_next", "llama4"]
SYSTEM = Message("system", "You keep a lighthouse and answer in few words.")


@pytest.fixture
def engine_of_kind(loaded_kind):
    """`engine_of_kind(name, cache, **own)`: an engine over a random model of a family."""
    made = []

    def make(name, cache, **own):
        made.append(
            Engine(lambda _: scheduler_here(loaded_kind(name, **own), Identity(name, name), cache))
        )
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def ask(engine, history, **more):
    request = GenerationRequest(tuple(history), **{"max_tokens": 6, **more})
    *_, last = engine.generate(request)
    assert isinstance(last, Finished)
    return last


def answered(event):
    kept = Generated.of(event.ids, event.text, event.fingerprint)
    return Message("assistant", event.text, kept)


@pytest.mark.parametrize("name", KINDS)
def test_turns_forks_and_repeats_prefill_what_is_new(name, engine_of_kind):
    cache = PromptCache("500MB")
    engine = engine_of_kind(name, cache)
    history, path = [SYSTEM, Message("user", "One?")], 0
    for turn in range(4):
        event = ask(engine, history)
        assert event.usage.cached == path
        assert ask(engine, history, use_cache=False).ids == event.ids
        path = event.usage.prompt + event.usage.generated
        history += [answered(event), Message("user", f"And {turn}?")]
    fork = [*history[:-1], Message("user", "Something else?")]
    forked = ask(engine, fork)
    assert forked.usage.cached >= path
    assert ask(engine, fork, use_cache=False).ids == forked.ids
    again = ask(engine, fork)
    # Rows resume at the last token; what can't be cut, where the user's message ends.
    assert again.usage.prefilled <= len("<|im_start|>assistant\n")
    assert cache.check() == []


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "mamba2", "jamba"])
def test_a_restart_goes_on_from_the_disk(name, engine_of_kind, tmp_path):
    store = DiskStore(tmp_path)
    first_engine = engine_of_kind(name, PromptCache("500MB", store))
    history = [SYSTEM, Message("user", "One?")]
    first = ask(first_engine, history)
    first_engine.close()
    history += [answered(first), Message("user", "Two?")]
    second = ask(engine_of_kind(name, PromptCache("500MB", DiskStore(tmp_path))), history)
    assert second.usage.cached == first.usage.prompt + first.usage.generated
    assert store.check() == []


def chances(event):
    """The log probabilities of an answer: a state that is a little wrong shows in them first."""
    return [one.chosen.logprob for one in event.logprobs]


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_behind_a_restart_states_stand_where_they_say(name, engine_of_kind, tmp_path):
    first_engine = engine_of_kind(name, PromptCache("500MB", DiskStore(tmp_path)))
    history = [SYSTEM, Message("user", "One?")]
    first = ask(first_engine, history)
    first_engine.close()
    cache = PromptCache("500MB", DiskStore(tmp_path))
    engine = engine_of_kind(name, cache)
    histories = [[*history, answered(first), Message("user", "Two?")]]
    histories += [[SYSTEM, Message("user", text)] for text in ("Something else?", "Who?", "Why?")]
    for asked in histories:
        warm = ask(engine, asked, logprobs=1)
        cold = ask(engine, asked, logprobs=1, use_cache=False)
        assert warm.usage.cached > 0
        assert warm.ids == cold.ids
        assert chances(warm) == pytest.approx(chances(cold), abs=1e-3)
    assert cache.check() == []


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_a_state_that_a_failed_prefill_left_is_nobody_s(name, engine_of_kind, monkeypatch):
    cache = PromptCache("500MB")
    engine = engine_of_kind(name, cache)
    calls = []

    def prefill(model, layers, ids):
        forward.prefill(model, layers, ids)
        calls.append(len(ids))
        if len(calls) == 3:
            raise RuntimeError("[metal::malloc] no more memory")

    monkeypatch.setattr(prefilling, "prefill", prefill)
    history = [SYSTEM, Message("user", "and more of it, the lamp and the fog. " * 18)]
    with pytest.raises(RuntimeError, match="no more memory"):
        ask(engine, history)
    warm = ask(engine, history, logprobs=1)
    cold = ask(engine, history, logprobs=1, use_cache=False)
    assert warm.usage.cached > 0  # what was kept before the fault
    assert warm.ids == cold.ids
    assert chances(warm) == pytest.approx(chances(cold), abs=1e-3)
    assert cache.check() == []


@pytest.mark.parametrize("name", ["qwen3_next", "gemma3_text"])
def test_quantised_rows_beside_states_and_windows(name, engine_of_kind):
    cache = PromptCache("500MB")
    engine = engine_of_kind(name, cache, head_dim=32)
    kv = KVSettings(8, 32, 100)
    long = [SYSTEM, Message("user", "A rather long question about lamps, oil and wicks. " * 3)]
    ask(engine, [SYSTEM, Message("user", "Hi?")])  # plain, up to where both part
    for asked in (long, long, [*long[:1], Message("user", "Hi?")]):
        warm = ask(engine, asked, kv=kv, logprobs=1)
        cold = ask(engine, asked, kv=kv, logprobs=1, use_cache=False)
        assert warm.usage.cached > 0
        assert warm.ids == cold.ids
        assert chances(warm) == pytest.approx(chances(cold), abs=1e-3)
    assert cache.check() == []


@pytest.mark.parametrize("name", ["mamba2", "jamba", "gemma3_text"])
def test_where_two_prompts_part_a_third_one_goes_on(name, engine_of_kind):
    cache = PromptCache("500MB")
    engine = engine_of_kind(name, cache)
    text = "A rather long question that three people ask, and which ends with "
    ask(engine, [SYSTEM, Message("user", text + "X")])
    second = ask(engine, [SYSTEM, Message("user", text + "Y")])
    third = ask(engine, [SYSTEM, Message("user", text + "Z")])
    assert third.usage.cached >= second.usage.cached + len(text.split())
    assert third.usage.prefilled < 40
    assert cache.check() == []


@pytest.mark.parametrize("name", KINDS)
def test_answers_together_are_those_alone(name, engine_of_kind):
    questions = ["One?", "And what comes after one, in the long run?", "Three, please?", "4?"]
    asked = [[SYSTEM, Message("user", text)] for text in questions]
    alone = [ask(engine_of_kind(name, PromptCache("1MB")), history).ids for history in asked]
    cache = PromptCache("500MB")
    engine = engine_of_kind(name, cache)
    with ThreadPoolExecutor(len(asked)) as threads:
        together = list(threads.map(lambda history: ask(engine, history), asked))
    assert [event.ids for event in together] == alone
    assert sum(event.usage.cached == 0 for event in together) == 1
    assert cache.check() == []
