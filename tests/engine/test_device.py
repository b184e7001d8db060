"""A device that fails, at each of its commands: nothing that it should have written is found (P1).

A session of five requests is asked for, of which one command fails. Then each is asked for again,
from memory and by another process from the disk, and answered as by a model without a cache.
"""

import dataclasses
import functools
from collections import defaultdict

import mlx.core as mx
import pytest
from failing_device import MESSAGE, FailingDevice
from readers import Reader, steady_clock

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.identity import Identity
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine import drafting
from llm_mlx_promptcache.engine.one_machine import scheduler_here
from llm_mlx_promptcache.engine.request import GenerationRequest

SYSTEM = Message("system", "You keep a lighthouse and answer in few words. " * 2)
TOLD = ["eval", "wait", "synchronize"]
KINDS = ["llama", "gemma3_text", "mamba2", "jamba"]


def asked(*texts, **more):
    messages = (SYSTEM, *(Message("user", text) for text in texts[:1]))
    for number, text in enumerate(texts[1:]):
        messages += (Message("assistant", f"Answer {number}."), Message("user", text))
    return GenerationRequest(messages, **{"max_tokens": 6, "logprobs": 1, **more})


ALONE = [asked("One?"), asked("One?", "And then?")]
HELD = asked("Yes or no?", schema={"type": "object", "properties": {"a": {"type": "boolean"}}})
TOGETHER = [asked("What comes after two?"), asked("Two?", max_tokens=9), asked("One?", "Or not?")]


class Session:
    """A model, its cache and a store, and what is asked alone; then others are, together."""

    def __init__(self, loaded, folder, alone=ALONE):
        self.loaded, self.folder, self.alone = loaded, folder, alone
        self.begin()

    def begin(self):
        """As another process does."""
        self.cache = PromptCache("100MB", DiskStore(self.folder))
        self.scheduler = scheduler_here(
            self.loaded, Identity("model", "model"), self.cache, clock=steady_clock()
        )

    def ask(self, *requests):
        made = [Reader(one) for one in requests]
        for one in made:
            self.scheduler.add(one)
        while self.scheduler.busy:
            try:
                self.scheduler.step()
            except Exception as error:  # as the engine's thread does
                self.scheduler.fail(error)
        return made

    def settle(self, last=False):
        try:
            self.scheduler.settle(last=last)
        except RuntimeError:
            assert not last

    def all(self):
        """Every request once: its answer, or the error that it got in place of one."""
        answers = []
        for group in (*([one] for one in self.alone), TOGETHER):
            answers += [one.events[-2] for one in self.ask(*group)]
            self.settle()
        return answers

    def check(self, cold):
        for again in (False, True):
            if again:
                self.scheduler.settle(last=True)
                assert self.cache.check() == []
                self.begin()
            for one, right in zip([*self.alone, *TOGETHER], cold, strict=True):
                [warm] = self.ask(one)
                assert warm.last.ids == right.ids, (again, warm.last.usage)
                assert (
                    warm.last.usage.cached or not again
                )  # law 1 says nothing of a cache of misses
                assert chances(warm.last) == pytest.approx(chances(right), abs=1e-3)
        self.scheduler.settle(last=True)
        assert self.cache.check() == []
        assert DiskStore(self.folder).check() == []


def chances(event):
    return [one.chosen.logprob for one in event.logprobs]


@pytest.fixture(scope="module")
def loaded(loaded_kind):
    """`loaded(kind)`: each model once."""
    return functools.cache(loaded_kind)


@pytest.fixture
def session_of(loaded, tmp_path):
    def make(kind, number=0, **how):
        return Session(loaded(kind), tmp_path / f"{kind}-{number}", **how)

    return make


def cold(session):
    off = [dataclasses.replace(one, use_cache=False) for one in [*session.alone, *TOGETHER]]
    return [session.ask(one)[0].last for one in off]


@pytest.fixture(scope="module")
def every_whole():
    return defaultdict(dict)


@pytest.fixture
def whole(every_whole, request):
    """The answers of a test's session of each kind where nothing fails, and their commands."""
    return every_whole[request.node.originalname]


def unfailing(whole, session_of, monkeypatch, kind, how):
    """The same, counted once, where no command fails: then all of it is right and is reused."""
    if kind not in whole:
        first = session_of(kind, **how)
        right = cold(first)
        with FailingDevice(first.cache)(monkeypatch) as counted:
            first.all()
        first.check(right)
        whole[kind] = right, counted.commands
    return whole[kind]


def fail_at_each(whole, session_of, monkeypatch, kind, told, step, **how):
    """Let every `step`th command fail, one a session; each way of being `told` has others."""
    right, commands = unfailing(whole, session_of, monkeypatch, kind, how)
    failed = 0
    first = 1 + step * (2 * TOLD.index(told) + 1) // 6
    for number in range(first, commands + 1, step):
        session = session_of(kind, number, **how)
        with FailingDevice(session.cache, number, told)(monkeypatch) as playing:
            answers = session.all()
            session.settle()
        failed += playing.failed
        print("command", number)  # shown where it fails
        if told != "synchronize":  # where nobody is told in time, nobody can know
            for answer, one in zip(answers, right, strict=True):
                assert isinstance(answer, RuntimeError) or answer.ids == one.ids
        session.check(right)
    assert failed > commands // (2 * step)


@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("kind", KINDS)
def test_law_1_nothing_is_kept_of_what_a_failing_command_wrote(
    whole, session_of, monkeypatch, kind, told
):
    fail_at_each(whole, session_of, monkeypatch, kind, told, 47)


@pytest.mark.parametrize("told", TOLD)
def test_law_1_nor_where_a_grammar_reads_each_token_first(whole, session_of, monkeypatch, told):
    """Then who hears of a failure may be who reads what else was likely."""
    fail_at_each(
        whole,
        session_of,
        monkeypatch,
        "llama",
        told,
        9,
        alone=[HELD, asked("Yes or no?", "And then?")],
    )


class Remembering:
    """A drafter that knows some answers, every third token of them wrong."""

    def __init__(self, answers, prompt, accepted):
        self._answers, self._prompt, self._accepted = answers, prompt, accepted

    def expects(self, path):
        return True

    def propose(self, path, token, most):
        said = [*path[len(self._prompt) :], token][len(path) < len(self._prompt) :]
        for ids in self._answers:
            if list(ids[: len(said)]) == said:
                draft = list(ids[len(said) : len(said) + min(most, 4)])
                return [one + (not (at + len(path)) % 3) for at, one in enumerate(draft)]
        return []

    def judge(self, offered, accepted):
        self._accepted.append(accepted)

    def learn(self, behind, texts):
        """Knows what it needs."""


@pytest.mark.drafts
@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("kind", ["llama", "mamba2"])
def test_law_1_nor_of_what_a_draft_wrote(whole, session_of, monkeypatch, kind, told):
    answers, accepted = [one.ids for one in cold(session_of(kind, 999))], []
    monkeypatch.setattr(
        drafting, "Drafter", lambda prompt, *_: Remembering(answers, prompt, accepted)
    )
    fail_at_each(whole, session_of, monkeypatch, kind, told, 23)
    assert sum(accepted) > 9


@pytest.mark.parametrize("where", ["draft_probe._singly", "batch_probe._together"])
def test_law_1_what_a_probe_hears_is_everybody_s_failure(session_of, monkeypatch, where):
    """It is asked in the middle of answers: what failed may have been theirs, not the probe's."""
    session = session_of("llama")
    right, garbled = cold(session), []
    ids = [one.ids for one in right]
    monkeypatch.setattr(drafting, "Drafter", lambda prompt, *_: Remembering(ids, prompt, []))

    def fails(*_):
        """As a device does that was at work for the answers, and tells the probe."""
        garbled.extend(session.scheduler._decode._batches._all())
        for batch in garbled:
            for layer in batch._layers:
                if layer.keys is not None:
                    layer.keys = mx.random.normal(layer.keys.shape)
        raise RuntimeError(MESSAGE)

    for name in ("draft_probe", "batch_probe"):  # what an earlier process found out is not asked
        monkeypatch.setattr(f"llm_mlx_promptcache.engine.{name}._KIND", f"{name} of this test")
    monkeypatch.setattr(f"llm_mlx_promptcache.engine.{where}", fails)
    session.begin()
    answers = session.all()
    assert garbled
    for answer, one in zip(answers, right, strict=True):
        assert isinstance(answer, RuntimeError) or answer.ids == one.ids
    session.check(right)


@pytest.mark.soak
@pytest.mark.parametrize("told", TOLD)
@pytest.mark.parametrize("kind", [*KINDS, "gpt_oss", "qwen3_next", "llama4"])
def test_law_1_at_each_command(whole, session_of, monkeypatch, kind, told, soak_share):
    # Each command is a whole session of its own: shares of it are taken twice.
    fail_at_each(whole, session_of, monkeypatch, kind, told, round(1 / soak_share**2))
