"""Drafts for tests of law 17: right and wrong ones played into answers that are known already."""

import dataclasses
import random
from array import array
from contextlib import contextmanager

import pytest
from readers import Reader, request, steady_clock, together

from llm_mlx_promptcache.cache import device
from llm_mlx_promptcache.cache.identity import Identity
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.messages import Generated, Message
from llm_mlx_promptcache.engine import drafting
from llm_mlx_promptcache.engine.one_machine import scheduler_here
from llm_mlx_promptcache.engine.request import Sampling

WAYS = {
    "greedy": {},
    "seed": {"sampling": Sampling(temperature=0.9, top_p=0.95, seed=3)},
    "penalties": {
        "sampling": Sampling(
            temperature=0.7,
            seed=5,
            repetition_penalty=1.2,
            frequency_penalty=0.1,
            logit_bias=((7, 1.5),),
            top_k=40,
        )
    },
    "xtc": {"sampling": Sampling(temperature=1, seed=9, xtc_probability=0.5, xtc_threshold=0.05)},
    "logprobs": {"logprobs": 2},
}
QUESTIONS = ("What is it that comes after two?", "And the lamp?", "The fog, " * 4, "Why?")
# A log probability is the difference of two logits, each within law 1's bound.
NEAR = 2.5e-4


class Played:
    """A drafter that knows the answer, and gets a part of it wrong."""

    def __init__(self, prompt, answer, seed, wrong=0.3, widest=8, silent=0.2):
        self._all = array("I", prompt) + array("I", answer)
        self._random = random.Random(seed)
        self._wrong, self._widest, self._silent = wrong, widest, silent
        self.offered = self.accepted = 0

    def learn(self, before, others):
        pass

    def expects(self, path):
        return self._random.random() >= self._silent

    def propose(self, path, token, most):
        start = len(path) + 1
        width = self._random.randint(0, self._widest)
        draft = list(self._all[start : start + min(width, most)])
        return [
            self._random.randrange(200) if self._random.random() < self._wrong else one
            for one in draft
        ]

    def judge(self, offered, accepted):
        self.offered += offered
        self.accepted += accepted


@contextmanager
def playing(right_ids, seed, **how):
    """Answers that begin meanwhile are drafted by `Played`; gives the list of these."""
    made = []

    def play(prompt, *_):
        made.append(Played(prompt, right_ids, seed, **how))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drafting, "Drafter", play)
        yield made


def scheduler_over(loaded, cache=None):
    """A model with a cache of its own, or `cache`, that the test steps."""
    cache = cache or PromptCache("100MB")
    return scheduler_here(loaded, Identity("m", "m"), cache, clock=steady_clock())


def plainly(scheduler, one):
    """The reader of a request that has neither drafts nor the cache."""
    [reader] = together(scheduler, dataclasses.replace(one, drafts=False, use_cache=False))
    return reader


def disturbed(scheduler, one, draw):
    """The last event of an answer that is put off and loses its layers again and again."""
    reader = Reader(one)
    scheduler.add(reader)
    while scheduler.busy:
        scheduler.step()
        answers = list(scheduler._decode)
        if answers and draw.random() < 0.1:
            scheduler._suspend(answers[0])
        elif answers and draw.random() < 0.1:
            device.note(RuntimeError("[metal] another model's command failed"))
    return reader.last


def chances(event):
    """The log probabilities of an answer's tokens."""
    return [one.chosen.logprob for one in event.logprobs]


def next_turn(one, event, most=6):
    """The turn behind an answer; rows that are off show in its log probabilities."""
    said = Message("assistant", event.text, Generated.of(event.ids, event.text, event.fingerprint))
    turns = (*one.messages, said, Message("user", "And then?"))
    return dataclasses.replace(one, messages=turns, max_tokens=most, logprobs=1)


def same(event, right):
    """Tokens and text are those of another answer, and the log probabilities if both have some."""
    assert (event.ids, event.text, event.reason) == (right.ids, right.text, right.reason)
    assert chances(event) == pytest.approx(chances(right), abs=NEAR)


def asked(scheduler, most, way):
    """A question in one of the `WAYS`, and its plain answer: the first long one, else the longest.

    Some tiny models end most of their answers after a few tokens.
    """
    found = []
    for number, text in enumerate(QUESTIONS * 2):
        one = request(text, system=number < len(QUESTIONS), max_tokens=most, **WAYS[way])
        found.append((one, plainly(scheduler, one).last))
        if len(found[-1][1].ids) > most / 2:
            return found[-1]
    return max(found, key=lambda pair: len(pair[1].ids))
