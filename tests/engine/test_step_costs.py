"""A step of decoding beside mlx-lm's own: waits for the device, and launches given to it."""

import sys

import mlx.core as mx
import pytest
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_sampler
from readers import Reader, request
from waits import Counted, launches

from llm_mlx_promptcache.engine.request import Sampling

STEPS = 12
MOST_CALLS = 50  # functions a step and answer, beside mlx-lm's
SAMPLED = {"temperature": 0.7, "top_p": 0.9}
# Ours draws each row with a key of its own; mlx-lm all rows with one, if they have one sampler.
KINDS = [pytest.param({}, id="greedy"), pytest.param(SAMPLED, id="sampled")]


class Costs(Counted):
    """Requests of steps to MLX: calls that wait, and launches of the work that they begin."""

    def __init__(self, monkeypatch, folder):
        super().__init__(monkeypatch)
        self._folder = folder
        begin = mx.async_eval

        def begun(*arrays):
            flat = [one for one in arrays if isinstance(one, mx.array)]
            flat += [x for one in arrays if isinstance(one, (list, tuple)) for x in one]
            self.calls["launches"] += launches(self._folder, *flat)
            return begin(*arrays)

        monkeypatch.setattr(mx, "async_eval", begun)

    def of(self, step):
        """The costs of one step in the middle of an answer: all are the same, or it is not one."""
        for _ in range(3):
            step()
        each = []
        for _ in range(STEPS):
            self.clear()
            step()
            each.append(+self.calls)
        assert len({frozenset(one.items()) for one in each}) == 1, each
        return each[0]


@pytest.fixture
def costs(monkeypatch, tmp_path):
    return Costs(monkeypatch, tmp_path)


def decoding(scheduler, count, sampling):
    """The scheduler, as so many answers are under way together."""
    for at in range(count):
        asked = request(f"And {at}?", drafts=False, max_tokens=99, sampling=sampling(at))
        scheduler.add(Reader(asked))
    for _ in range(40):
        scheduler.step()
        if len(list(scheduler._decode)) == count:
            return scheduler
    raise AssertionError("not all of them are decoded")


def calls_of(step):
    """The number of functions that Python calls in a step, those of C left out."""
    count = 0

    def seen(frame, event, argument):
        nonlocal count
        count += event == "call"

    sys.setprofile(seen)
    try:
        step()
    finally:
        sys.setprofile(None)
    return count


def waits(cost):
    return sum(cost[name] for name in ("eval", "synchronize", "item", "tolist"))


@pytest.mark.parametrize("how", KINDS)
def test_a_step_of_one_answer(scheduler_of, costs, how):
    scheduler = scheduler_of()
    model = scheduler._prefill._model
    decoding(scheduler, 1, lambda at: Sampling(**how, **({"seed": at} if how else {})))
    ours = costs.of(scheduler.step)
    sampler = make_sampler(temp=0.7, top_p=0.9) if how else None
    told = generate_step(
        mx.array([5, 6, 7]),
        model,
        max_tokens=99,
        prompt_cache=make_prompt_cache(model),
        sampler=sampler,
    )
    theirs = costs.of(lambda: next(told))
    assert ours["async_eval"] == theirs["async_eval"] == 1
    assert waits(ours) == 1
    assert ours["launches"] <= theirs["launches"]


@pytest.mark.parametrize("how", KINDS)
def test_a_step_of_eight_answers(scheduler_of, costs, how):
    scheduler = scheduler_of()
    model = scheduler._prefill._model
    decoding(scheduler, 8, lambda at: Sampling(**how, **({"seed": at} if how else {})))
    ours = costs.of(scheduler.step)
    made = BatchGenerator(model, max_tokens=99)
    samplers = [make_sampler(temp=0.7, top_p=0.9) for _ in range(8)] if how else None
    made.insert([[5 + at, 6, 7] for at in range(8)], samplers=samplers)
    theirs = costs.of(made.next)
    assert ours["async_eval"] == theirs["async_eval"] == 1
    assert waits(ours) == 1 < waits(theirs)
    assert ours["launches"] <= theirs["launches"]


def test_python_s_own_work_of_a_step_is_bounded(scheduler_of):
    scheduler = scheduler_of()
    model = scheduler._prefill._model
    decoding(scheduler, 8, lambda at: Sampling())
    made = BatchGenerator(model, max_tokens=99)
    made.insert([[5 + at, 6, 7] for at in range(8)])
    for step in (scheduler.step, made.next):
        for _ in range(3):
            step()
    ours, theirs = (
        min(calls_of(step) for _ in range(STEPS)) for step in (scheduler.step, made.next)
    )
    # A reader is told text as it comes, which theirs leaves to others; the next pass runs then.
    assert ours <= theirs + 8 * MOST_CALLS
