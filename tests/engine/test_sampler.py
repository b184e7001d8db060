"""Penalties, filters and bias, against sums done by hand; seeds that repeat."""

import math

import mlx.core as mx
import pytest

from llm_mlx_promptcache.engine.request import Sampling
from llm_mlx_promptcache.engine.sampler import Sampler

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
