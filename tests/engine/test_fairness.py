"""Nobody waits for one request: the real scheduler over a played model, whose passes move a clock.

A pass costs what one of the default model took on a quiet machine with two cores;
`python benchmarks/fairness.py curve` measures it anew. Nothing here waits or reads a real clock.
"""

import dataclasses
import itertools
import shutil
from functools import partial

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache
from readers import Reader, together

from llm_mlx_promptcache.cache.identity import Identity
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.config import HOME_VARIABLE
from llm_mlx_promptcache.engine.chunks import ChunkPlanner, ChunkSizes
from llm_mlx_promptcache.engine.events import Finished, Progress
from llm_mlx_promptcache.engine.prefill import Prefill
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.models.loading import load_model

# Seconds of a pass: at all, for each of its tokens, and for each token that stood there before.
PASS, TOKEN, BEFORE, PAIR = 0.047, 0.00185, 4.15e-6, 2.77e-6
IDENTITY = "f" * 64
LONG = 10_000


class Played:
    """A model of one layer that computes nothing: its passes move `now`, and are written down."""

    def __init__(self, vocabulary, deep):
        self.layers = [None]
        self.now = 0.0
        self.passes = []  # the tokens of each row, and the seconds
        self._vocabulary, self._deep = vocabulary, deep

    def clock(self):
        return self.now

    def parameters(self):
        return {}

    def make_cache(self):
        return [KVCache()]

    def __call__(self, tokens, cache=None):
        rows, count = tokens.shape
        if cache is not None:
            before = int(mx.max(mx.array(cache[0].offset)).item()) if self._deep else 0
            took = PASS + rows * count * TOKEN + rows * before * (BEFORE + PAIR * count)
            self.now += took
            self.passes.append((count, took))
            held = mx.zeros((rows, 1, count, 4))
            cache[0].update_and_fetch(held, held)
        return mx.broadcast_to(mx.arange(self._vocabulary) == 5, (rows, count, self._vocabulary))


class Machine:
    """A home and a model at work in it; `machine()` -> a scheduler of its own, and that model.

    `alone` has the seconds of requests that nobody else was beside, each played once.
    """

    def __init__(self, loaded, *, deep):
        self.alone = {}
        self._loaded, self._deep = loaded, deep

    def __call__(self):
        from llm_mlx_promptcache.engine.one_machine import scheduler_here

        model = Played(self._loaded.config["vocab_size"], self._deep)
        playing = dataclasses.replace(self._loaded, model=model)
        return scheduler_here(
            playing, Identity(IDENTITY, IDENTITY), PromptCache("1GB"), clock=model.clock
        ), model


@pytest.fixture(scope="module", params=[False, True], ids=["flat", "deep"])
def learned(request, tiny_llama, tmp_path_factory):
    """A machine, and a home where its speed is known, as after a day of use.

    "deep": a token costs more, the more stand before it, as on a CPU.
    """
    home = tmp_path_factory.mktemp("learned")
    machine = Machine(load_model(str(tiny_llama(context=1 << 15))), deep=request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(home))
        spent(*machine(), [(0, long_prompt("to learn"))])
    return machine, home


@pytest.fixture
def played(learned, tmp_path, monkeypatch):
    """That machine, in a home of the test's own where its speed is known."""
    machine, home = learned
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    return machine


numbers = itertools.count()


def long_prompt(about, tokens=LONG):
    return asking(f"{about} {next(numbers)} " + "x " * (tokens // 2), 1)


def asking(text, answer):
    return Reader(GenerationRequest((Message("user", text),), answer, use_cache=False))


def chat(answer=8):
    return asking(f"{next(numbers)}?", answer)


def one_long():
    return long_prompt("one")


def short_question():
    return question(1)


def question(letters=300):
    return asking(f"{next(numbers)} " + "y" * letters, 8)


def spent(scheduler, model, arrivals):
    """Seconds from each one's arrival, at its second, to its end; and how many tokens it had."""
    waiting = sorted(arrivals, key=lambda arrival: arrival[0])
    came, ended = {}, {}
    while waiting or scheduler.busy:
        if waiting and not scheduler.busy:
            model.now = max(model.now, waiting[0][0])
        while waiting and waiting[0][0] <= model.now:
            second, reader = waiting.pop(0)
            came[reader] = second
            scheduler.add(reader)
        scheduler.step()
        for reader in came.keys() - ended.keys():
            if reader.events and reader.events[-1] is None:
                ended[reader] = model.now
                assert isinstance(reader.last, Finished)
    return [ended[reader] - came[reader] for _, reader in arrivals]


def alone(played, asked):
    """Seconds of what `asked()` asks, in a machine where nobody else asks anything."""
    if asked not in played.alone:
        [played.alone[asked]] = spent(*played(), [(0, asked())])
    return played.alone[asked]


def prefilled(reader):
    """Tokens of its prompt that were run so far."""
    marks = [event for event in reader.events if isinstance(event, Progress)]
    return marks[-1].done if marks else 0


# Places in the long prompt's time at which somebody comes.
SHARES = [0, 0.00004, 0.02, 0.1, 0.31, 0.555, 0.77, 0.95]


@pytest.mark.parametrize("share", SHARES)
def test_a_chat_beside_a_long_prompt_takes_three_times_as_long_at_most(played, share):
    long_alone, chat_alone = alone(played, one_long), alone(played, chat)
    scheduler, model = played()
    arrivals = [(0, long_prompt("two")), (share * long_alone, chat())]
    long, short = spent(scheduler, model, arrivals)
    assert short <= 3 * chat_alone
    assert long <= 1.1 * long_alone
    assert len(arrivals[1][1].last.ids) == 8


@pytest.mark.parametrize("words", [1, 300])
def test_chats_one_after_another_leave_a_third_to_the_long_prompt(played, words):
    """Each comes when the one before has ended."""
    scheduler, model = played()
    long = long_prompt("one")
    scheduler.add(long)
    chats = []
    while prefilled(long) < LONG - 256:
        assert model.now < 2000
        if not chats or chats[-1].events[-1:] == [None]:
            chats.append(question(words))
            scheduler.add(chats[-1])
        scheduler.step()
    assert len(chats) > 20
    assert model.now <= 3 * alone(played, one_long)
    chat_alone = alone(played, {1: short_question, 300: question}[words])
    assert model.now <= 3 * chat_alone * len(chats)


@pytest.mark.parametrize("answers", [1, 4])
def test_long_answers_and_a_long_prompt_get_a_third_each(played, answers):
    scheduler, model = played()
    asked = [chat(20_000) for _ in range(answers)]
    for one in asked:
        scheduler.add(one)
    while not all(one.events and len(one.events) > 1 for one in asked):
        scheduler.step()
    scheduler.add(long := long_prompt("one"))
    # Each window is long enough for the credit that who comes has to be used up.
    for _ in range(3):
        began, passes = model.now, len(model.passes)
        while model.now < began + 20 and prefilled(long) < LONG - 256:
            scheduler.step()
        took = model.now - began
        answered = sum(seconds for count, seconds in model.passes[passes:] if count == 1)
        assert took / 3 <= answered <= took * 2 / 3


@pytest.mark.parametrize("share", SHARES[1::3])
def test_a_question_of_300_tokens_does_not_wait_for_a_long_prompt(played, share):
    long_alone, question_alone = alone(played, one_long), alone(played, question)
    scheduler, model = played()
    arrivals = [(0, long_prompt("two")), (share * long_alone, question())]
    long, asked = spent(scheduler, model, arrivals)
    assert asked <= 3 * question_alone
    assert long <= long_alone + 3 * question_alone


@pytest.mark.parametrize("share", SHARES[::3])
def test_a_chat_waits_for_two_long_prompts_no_longer_than_for_one(played, share):
    long_alone, chat_alone = alone(played, one_long), alone(played, chat)
    scheduler, model = played()
    arrivals = [(0, long_prompt("two")), (0, long_prompt("three")), (share * long_alone, chat())]
    *long, short = spent(scheduler, model, arrivals)
    assert short <= 3 * chat_alone
    assert max(long) <= 2.1 * long_alone


def test_many_chats_at_once_wait_for_one_another_and_not_for_the_long_prompt(played):
    def crowd():
        return [(2, chat()) for _ in range(12)]

    scheduler, model = played()
    without = spent(scheduler, model, crowd())
    scheduler, model = played()
    beside = spent(scheduler, model, [(0, long_prompt("two")), *crowd()])[1:]
    assert max(beside) <= 3 * max(without)


def test_a_prompt_alone_runs_in_whole_chunks_that_are_the_same_each_time(played):
    cut = []
    for _ in range(2):
        scheduler, model = played()
        spent(scheduler, model, [(0, asking("again " + "x " * (LONG // 2), 1))])
        cut.append([count for count, _ in model.passes if count > 1])
    assert cut[0] == cut[1]
    *chunks, last = cut[0]
    assert all(size & size - 1 == 0 for size in chunks)
    assert last <= chunks[-1]
    assert sorted(chunks, reverse=True) == chunks  # never larger where a token is dearer
    scheduler, model = played()
    spent(scheduler, model, [(0, asking("again " + "x " * (LONG // 2), 1)), (3, chat(40))])
    assert min(count for count, _ in model.passes if count > 1) < chunks[-1] or chunks[-1] == 16


def test_no_chunk_takes_over_a_second(played):
    scheduler, model = played()
    spent(scheduler, model, [(0, long_prompt("one"))])
    assert max(took for _, took in model.passes) < 1


def test_law_1_what_was_cut_into_other_chunks_beside_others_is_the_same(scheduler_of):
    """A real model: beside others chunks are small, and what that leaves serves a warm turn."""

    def request_of(words, answer, **more):
        return GenerationRequest((Message("user", words),), answer, logprobs=2, **more)

    def process(cache=None):
        sizes = ChunkSizes(1.0, 0.1, 8, 8, unknown=64, most=64)
        planner, ticks = ChunkPlanner(sizes=sizes), itertools.count()
        clock = partial(next, ticks)  # each look at it takes a second
        return scheduler_of(cache, planner=planner, context=8192, clock=clock)

    words = "words " * 150 + "and the capital"
    [cold] = together(process(), request_of(words, 20, use_cache=False))
    cache = PromptCache("100MB")
    scheduler = process(cache)
    other = Reader(request_of("One?", 400))
    scheduler.add(other)
    while not scheduler._decode:
        scheduler.step()
    beside = Reader(request_of(words, 20))
    together(scheduler, beside)
    marks = [event.done for event in beside.events if isinstance(event, Progress)]
    assert min(b - a for a, b in itertools.pairwise(marks[:-1])) == 8
    [warm] = together(process(cache), request_of(words, 20))
    assert warm.last.usage.cached > 500
    for one in (beside, warm):
        assert one.last.ids == cold.last.ids
        for each, same in zip(one.last.logprobs, cold.last.logprobs, strict=True):
            assert each.chosen.logprob == pytest.approx(same.chosen.logprob, abs=1e-4)
    assert cache.check() == []


def test_no_prompt_is_begun_for_a_few_of_its_tokens(played, monkeypatch):
    """The rest of a turn is no pass of its own: each prompt here is less than a chunk."""
    ran = []
    chunk = Prefill.chunk

    def counted(self, handle, ids, start, most):
        end = chunk(self, handle, ids, start, most)
        ran.append(end - start)
        return end

    monkeypatch.setattr(Prefill, "chunk", counted)
    scheduler, model = played()
    spent(scheduler, model, [(0, chat(200)), *((1, chat()) for _ in range(12))])
    assert len(ran) == 13, ran


def test_a_short_prompt_is_not_passed_for_ever_by_shorter_ones(played):
    """Two dozen who chat without a pause; what is neither long nor the shortest has its turn."""
    scheduler, model = played()
    chats, middle, since, count = [], None, 0.0, 0
    while middle is None or middle.events[-1:] != [None]:
        chats = [one for one in chats if one.events[-1:] != [None]]
        while len(chats) < 24:
            chats.append(chat(1))
            scheduler.add(chats[-1])
            count += 1
        if middle is None and model.now > 30:  # what was owed at the beginning is spent
            middle, since = asking("a rather long question " * 7, 1), model.now
            scheduler.add(middle)
        scheduler.step()
        assert model.now < 200, f"{count} chats later it has {middle and prefilled(middle)} tokens"
    assert model.now - since < 10
    assert len(middle.last.ids) == 1
