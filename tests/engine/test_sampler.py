"""Penalties, filters and bias, against sums done by hand; seeds that repeat."""

import math

import mlx.core as mx
import pytest
from mlx_lm.sample_utils import make_sampler
from waits import launches

from llm_mlx_promptcache.engine import drawing
from llm_mlx_promptcache.engine.request import Sampling
from llm_mlx_promptcache.engine.sampler import Likely, Sampler

LOGITS = mx.array([[2.0, 1.9, -1.0, 0.5, 1.8]])


def choose(count=1, logits=LOGITS, prompt=(0,), **sampling):
    sampler = Sampler(Sampling(**sampling), list(prompt), [4])
    return [int(sampler.choose(logits).item()) for _ in range(count)]


def test_temperature_0_takes_the_likeliest():
    assert choose(3) == [0, 0, 0]


def test_a_bias_is_added():
    assert choose(logit_bias=((3, 2.0), (1, 0.05))) == [3]


@pytest.mark.parametrize(
    ("penalty", "expected"),
    [
        # Token 0 is the prompt, so it starts at 1.85, and 1.9 is the most.
        ({"presence_penalty": 0.15}, [1, 0, 0, 0]),  # then 1.85, 1.75, 1.8 for ever
        ({"frequency_penalty": 0.15}, [1, 0, 4, 1]),  # 1.7, 1.75, 1.8; then 1.7, 1.75, 1.65
        ({"repetition_penalty": 1.08}, [1, 0, 0, 0]),  # 1.852, 1.759, 1.8 for ever
    ],
)
def test_penalties_lower_what_was_said(penalty, expected):
    assert choose(4, **penalty) == expected


def test_penalties_see_a_window_of_prompt_and_answer():
    sampling = {"presence_penalty": 5.0, "penalty_window": 2}
    assert choose(4, prompt=[0, 1], **sampling) == [4, 0, 1, 4]
    assert choose(2, prompt=[0, 1], **{**sampling, "penalty_window": 0}) == [0, 0]


def test_a_negative_logit_is_not_raised_by_a_repetition_penalty():
    logits = mx.array([[-1.0, -1.5]])
    assert choose(prompt=[0], logits=logits, repetition_penalty=2.0) == [1]


def test_filters_leave_only_what_they_say():
    hot = {"temperature": 5.0, "seed": 1}
    assert set(choose(60, top_k=2, **hot)) == {0, 1}
    assert set(choose(60, **hot)) == {0, 1, 2, 3, 4}
    share = math.exp(1.8 - 2.0)
    assert set(choose(60, min_p=share - 0.01, **hot)) == {0, 1, 4}
    assert set(choose(60, min_p=0.99, min_tokens_to_keep=2, **hot)) == {0, 1}
    assert set(choose(60, min_p=0.99, min_tokens_to_keep=99, **hot)) == {0, 1, 2, 3, 4}
    assert set(choose(60, top_p=0.3, **hot)) <= {0, 1}


def test_xtc_drops_the_likeliest_but_one_of_those_over_the_threshold():
    always = {"temperature": 1.0, "seed": 3, "xtc_probability": 1.0, "xtc_threshold": 0.2}
    # Token 4 is a stop token, which xtc spares with its neighbours of the same chance.
    assert 0 not in choose(40, logits=mx.array([[5.0, 4.9, 0.0, 0.0, 0.0]]), **always)
    never = {**always, "xtc_probability": 0.0}
    assert 0 in choose(40, logits=mx.array([[5.0, 4.9, 0.0, 0.0, 0.0]]), **never)


FILTERS = [
    {},
    {"top_p": 0.9},
    {"min_p": 0.05},
    {"min_p": 0.2, "min_tokens_to_keep": 7},
    {"top_k": 20},
    {"xtc_probability": 1.0, "xtc_threshold": 0.02},
    {"top_p": 0.95, "min_p": 0.02, "xtc_probability": 1.0, "xtc_threshold": 0.02, "top_k": 9},
]


NAMES = ["-".join(filters) or "none" for filters in FILTERS]


def draws(logits, **filters):
    """Ours, with the key behind it, and mlx-lm's from the same logits; not evaluated."""
    sampler = Sampler(Sampling(temperature=0.7, seed=3, **filters), [0], [4, 5])
    mx.eval(sampler.mark()[0], logits)
    special = {"xtc_special_tokens": [4, 5]} if "xtc_probability" in filters else {}
    chances = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    theirs = make_sampler(0.7, **filters, **special)(chances)
    return [sampler.choose(logits), sampler.mark()[0]], [theirs]


def logits_of(seed):
    return 3 * mx.random.normal((1, 500), key=mx.random.key(seed))


@pytest.mark.parametrize("filters", FILTERS, ids=NAMES)
def test_a_draw_takes_no_more_launches_than_mlx_lms(filters, tmp_path):
    ours, theirs = draws(logits_of(0), **filters)
    assert launches(tmp_path, *ours) <= launches(tmp_path, *theirs)


@pytest.fixture
def uncompiled():
    """MLX without its compiler: what a function is given can be looked at."""
    mx.disable_compile()
    drawing._compiled.cache_clear()
    drawing.most_likely.cache_clear()
    yield
    mx.enable_compile()
    drawing._compiled.cache_clear()
    drawing.most_likely.cache_clear()


@pytest.mark.parametrize("filters", FILTERS, ids=NAMES)
def test_filters_leave_what_mlx_lms_leave(uncompiled, filters, monkeypatch):
    left = []

    def drawn(logits, **more):
        left.append(mx.softmax(logits, axis=-1))
        return mx.argmax(logits, axis=-1)

    monkeypatch.setattr(mx.random, "categorical", drawn)
    for seed in range(5):
        draws(logits_of(seed), **filters)
        assert mx.allclose(*left[-2:], atol=1e-6)
        assert (left[-2] > 0).sum() == (left[-1] > 0).sum()
        assert (left[-1] > 0).sum() < 500 or not filters


def test_xtc_comes_before_top_k():
    logits = mx.log(mx.array([[0.4, 0.3, 0.2, 0.1, 0.0]]))
    xtc = {"xtc_probability": 1.0, "xtc_threshold": 0.25}
    assert set(choose(20, logits=logits, temperature=1, seed=1, top_k=1, **xtc)) == {1}


@pytest.mark.parametrize("count", [0, 1, 4, 11, 50])
def test_the_likeliest_are_told_in_order_without_a_sort_of_all(uncompiled, count, monkeypatch):
    logits, sorted_sizes = mx.array([[(7 * n) % 11 / 2 for n in range(11)]]), []
    for name in ("sort", "argsort"):
        real = getattr(mx, name)
        note = lambda one, real=real: sorted_sizes.append(one.size) or real(one)  # noqa: E731
        monkeypatch.setattr(mx, name, note)
    told = Likely.of(logits, mx.array([3]), count)
    assert max(sorted_sizes) <= count
    wanted = sorted(range(11), key=lambda id: -logits[0, id].item())[:count]
    assert told.ids.tolist() == wanted
    chances = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    assert told.logprobs.tolist() == pytest.approx([chances[0, id].item() for id in wanted])
    assert told.logprob.item() == pytest.approx(chances[0, 3].item())


def test_of_equally_likely_ones_the_first_is_told_first():
    told = Likely.of(mx.array([[1.0, 2.0, 1.0, 2.0, 2.0]]), mx.array([0]), 3)
    assert told.ids.tolist() == [1, 3, 4]


def test_a_seed_repeats_and_no_seed_does_not():
    hot = {"temperature": 3.0}
    assert choose(30, seed=0, **hot) == choose(30, seed=0, **hot)
    assert choose(30, seed=0, **hot) != choose(30, seed=1, **hot)
    assert choose(30, **hot) != choose(30, **hot)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1),
        ("temperature", float("nan")),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("top_k", -1),
        ("xtc_probability", 2),
        ("repetition_penalty", 0),
        ("penalty_window", -1),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        Sampling(**{name: value})
