"""Engine: counts of what is reused, errors, abandoned readers, the end of its thread."""

import json
import os
import subprocess
import sys
import threading

import forks
import pytest
from cache_counters import counted

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.identity import Identity
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.messages import Generated, Message
from llm_mlx_promptcache.engine.engine import Engine
from llm_mlx_promptcache.engine.events import Finished, Loading, Progress, TextDelta
from llm_mlx_promptcache.engine.one_machine import scheduler_here
from llm_mlx_promptcache.engine.request import GenerationRequest, Sampling
from llm_mlx_promptcache.engine.scheduler import Scheduler
from llm_mlx_promptcache.models.loading import load_model

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


@pytest.fixture
def folder(tiny_llama):
    return tiny_llama()


@pytest.fixture
def cache():
    made = PromptCache("100MB")
    yield made
    assert made.check() == []


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


def test_a_model_that_can_not_be_loaded_is_told_to_everyone_who_asks(engine_of, tmp_path):
    engine = engine_of(tmp_path / "nothing")
    for _ in range(2):
        with pytest.raises(ValueError, match="nothing"):
            ask(engine, user("One?"))


def test_a_closed_engine_refuses(folder, engine_of):
    engine = engine_of(folder)
    ask(engine, user("One?"))
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        ask(engine, user("One?"))


SOAK = """
import sys
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.pool import engine_for
from llm_mlx_promptcache.engine.request import GenerationRequest
for event in engine_for(sys.argv[1]).generate(GenerationRequest((Message("user", "One?"),), 4)):
    pass
"""


def test_the_process_ends_with_status_0_every_time(folder, tmp_path):
    environment = {**os.environ, "LLM_MLX_CACHED_HOME": str(tmp_path)}
    command = [sys.executable, "-c", SOAK, str(folder)]
    codes = [subprocess.run(command, env=environment).returncode for _ in range(3)]
    assert codes == [0] * 3


UNREAD = """
import sys
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.pool import engine_for
from llm_mlx_promptcache.engine.request import GenerationRequest, Sampling
never_ends = Sampling(logit_bias=((2, -1000.0),))
request = GenerationRequest((Message("user", "One?"),), 1 << 20, never_ends)
events = engine_for(sys.argv[1]).generate(request)
for _ in range(8):
    next(events)
"""


def test_an_answer_that_nobody_reads_does_not_keep_the_process(tiny_llama, tmp_path):
    folder = tiny_llama(context=1 << 21)
    environment = {**os.environ, "LLM_MLX_CACHED_HOME": str(tmp_path)}
    command = [forks.python(), "-c", UNREAD, str(folder)]
    assert subprocess.run(command, env=environment, timeout=60).returncode == 0


FORKED = """
import os, signal, sys
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.pool import engine_for
from llm_mlx_promptcache.engine.request import GenerationRequest
engine = engine_for(sys.argv[1])
request = GenerationRequest((Message("user", "One?"),), 4)
list(engine.generate(request))
if not (child := os.fork()):
    signal.alarm(30)
    try:
        list(engine.generate(request))
    except RuntimeError as error:
        print(error, flush=True)
        os._exit(7)
    os._exit(8)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
list(engine.generate(request))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform can't fork")
def test_a_forked_child_is_told_at_once(folder, tmp_path):
    environment = {**os.environ, "LLM_MLX_CACHED_HOME": str(tmp_path)}
    command = [forks.python(), "-c", FORKED, str(folder)]
    run = subprocess.run(command, env=environment, timeout=60, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "belongs to the process that forked" in run.stdout


def test_who_waits_no_longer_for_memory_does_not_find_the_model_gone(folder, monkeypatch):
    loads, cache, may_go_on = [], PromptCache("100MB"), threading.Event()
    settle = Scheduler.settle

    def slow(scheduler, **last):
        assert may_go_on.wait(60)
        settle(scheduler, **last)

    def load(_):
        loads.append(folder)
        return scheduler_here(load_model(str(folder)), Identity("tiny", "tiny"), cache)

    monkeypatch.setattr(Scheduler, "settle", slow)
    engine = Engine(load)
    ask(engine, user("One?"))
    assert not engine.unload(timeout=0.01)
    may_go_on.set()
    ask(engine, user("Two?"))
    assert len(loads) == 1
    assert engine.unload()
    ask(engine, user("Three?"))
    assert len(loads) == 2
    engine.close()


def test_all_who_wait_for_a_model_hear_how_far_it_is(folder):
    """A reader that comes in the middle is told at once; one that left is told nothing more."""
    may_go_on, asked, heard = threading.Event(), threading.Event(), {}

    def load(tell):
        tell(Loading("first"))
        asked.set()
        assert may_go_on.wait(60)
        tell(Loading("second", 1, 2))
        return scheduler_here(
            load_model(str(folder)), Identity("tiny", "tiny"), PromptCache("100MB")
        )

    engine = Engine(load)
    request = GenerationRequest((Message("user", "One?"),), 4)

    def listen(name, events):
        heard[name] = [event for event in events if isinstance(event, Loading)]

    early = threading.Thread(target=listen, args=("early", engine.generate(request)))
    early.start()
    assert asked.wait(60)
    late, left = engine.generate(request), engine.generate(request)
    assert next(left) == next(late) == Loading("first")
    left.close()
    beats = engine.beats
    may_go_on.set()
    listen("late", late)
    early.join()
    assert heard == {
        "early": [Loading("first"), Loading("second", 1, 2)],
        "late": [Loading("second", 1, 2)],
    }
    assert engine.beats > beats + 4  # one for what was told, at least one for each token
    assert not [event for event in engine.generate(request) if isinstance(event, Loading)]
    engine.close()


def test_c8_a_load_that_nobody_waits_for_ends_at_its_next_step_when_the_process_leaves(folder):
    steps, begun, may_go_on = [], threading.Event(), threading.Event()

    def load(tell):
        for number in range(1000):
            steps.append(number)
            begun.set()
            assert may_go_on.wait(60)
            tell(Loading("weights"))
        return scheduler_here(
            load_model(str(folder)), Identity("tiny", "tiny"), PromptCache("100MB")
        )

    engine = Engine(load)
    request = GenerationRequest((Message("user", "One?"),), 4)
    told = []
    listening = threading.Thread(target=lambda: told.extend(engine.generate(request)))
    listening.start()
    assert begun.wait(60)
    leaving = threading.Thread(target=engine._leave)  # as at the end of the process
    leaving.start()
    while not engine._closed:
        pass
    may_go_on.set()
    leaving.join()
    listening.join()
    assert (steps, told) == ([0], [])


def test_a_load_that_somebody_waits_for_goes_on_where_the_engine_is_closed(folder):
    begun, may_go_on, told = threading.Event(), threading.Event(), []

    def load(tell):
        begun.set()
        assert may_go_on.wait(60)
        tell(Loading("weights"))
        return scheduler_here(
            load_model(str(folder)), Identity("tiny", "tiny"), PromptCache("100MB")
        )

    engine = Engine(load)
    request = GenerationRequest((Message("user", "One?"),), 4)
    listening = threading.Thread(target=lambda: told.extend(engine.generate(request)))
    listening.start()
    assert begun.wait(60)
    closing = threading.Thread(target=engine.close)
    closing.start()
    while not engine._closed:
        pass
    may_go_on.set()
    closing.join()
    listening.join()
    assert isinstance(told[-1], Finished)


def test_what_a_load_that_failed_told_is_not_told_to_the_next_request(folder):
    def load(tell):
        tell(Loading("first"))
        raise ValueError("no such model")

    engine = Engine(load)
    request = GenerationRequest((Message("user", "One?"),), 4)
    for _ in range(2):
        events = engine.generate(request)
        assert next(events) == Loading("first")
        with pytest.raises(ValueError, match="no such model"):
            next(events)
    assert engine.beats >= 4
    engine.close()


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
