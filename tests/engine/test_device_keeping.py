"""Rows kept, and rows not kept, where something fails: the device, a grammar, a reader."""

import threading

import mlx.core as mx
import pytest
from plain_layers import rows
from readers import SYSTEM, Reader, request, together

from llm_mlx_promptcache.cache import device
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine import batch, prefill
from llm_mlx_promptcache.engine.batch import Batch
from llm_mlx_promptcache.engine.constraint import Constraint
from llm_mlx_promptcache.engine.events import TextDelta
from llm_mlx_promptcache.engine.request import GenerationRequest, Sampling
from llm_mlx_promptcache.engine.sampler import Sampler

MESSAGE = "[METAL] Command buffer execution failed"


class Deaf(Reader):
    """A reader that fails at the first word."""

    def send(self, *told):
        super().send(*told)
        if any(isinstance(one, TextDelta) for one in told):
            raise ValueError("the reader is broken")


def fails_at(monkeypatch, owner, name, number):
    """Have a method fail at its n-th call."""
    real, calls = getattr(owner, name), []

    def call(*given):
        calls.append(name)
        if len(calls) == number:
            raise ValueError(f"{name} is broken")
        return real(*given)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize(
    ("owner", "name"), [(Constraint, "consume"), (Constraint, "mask"), (Sampler, "choose")]
)
def test_what_was_computed_is_kept_where_a_grammar_or_a_choice_fails(
    scheduler_of, cache, monkeypatch, owner, name
):
    made = scheduler_of(cache)
    asked = request("One?", regex="[a-z]{20,30}")
    before = device.failures()
    with monkeypatch.context() as patched:
        fails_at(patched, owner, name, 3)
        [first] = together(made, asked)
        with pytest.raises(ValueError, match=f"{name} is broken"):
            _ = first.last
    assert device.failures() == before
    [again] = together(made, asked)
    assert again.last.usage.prefilled == 1


def test_what_was_computed_is_kept_where_a_reader_fails(scheduler_of, cache):
    made, before = scheduler_of(cache), device.failures()
    together(made, Deaf(request("One?")))
    assert device.failures() == before
    [again] = together(made, request("One?"))
    assert again.last.usage.prefilled == 1


def turns(first):
    return GenerationRequest(
        (
            SYSTEM,
            Message("user", "One?"),
            Message("assistant", first.text, first.generated()),
            Message("user", "Two?"),
        ),
        max_tokens=8,
    )


@pytest.mark.parametrize("disk", [True, False])
def test_law_1_rows_that_moved_out_do_not_come_back_with_a_failure(
    scheduler_of, monkeypatch, tmp_path, disk
):
    cache = PromptCache("100MB", DiskStore(tmp_path) if disk else None)
    made = scheduler_of(cache)
    [first] = together(made, request("One?"))
    made.settle(last=True)
    asked = turns(first.last)
    real = prefill.prefill

    def spoilt(model, layers, ids):
        real(model, layers, ids)
        for layer in layers:  # the old rows too: the buffer may be a new one
            layer.keys, layer.values = (mx.zeros_like(a) for a in (layer.keys, layer.values))
        raise RuntimeError(MESSAGE)

    with monkeypatch.context() as patched:
        patched.setattr(prefill, "prefill", spoilt)
        [failed] = together(made, asked)
        with pytest.raises(RuntimeError, match="Command buffer"):
            _ = failed.last
    assert cache.check() == []
    [again] = together(made, asked)
    held = first.last.usage.prompt + first.last.usage.generated
    assert (again.last.usage.cached, again.last.from_disk) == ((held, held) if disk else (0, 0))
    [cold] = together(scheduler_of(), asked)
    assert again.last.ids == cold.last.ids
    assert together(made, asked)[0].last.usage.prefilled == 1
    assert cache.check() == []


def test_law_1_a_failure_in_another_thread_is_everybody_s(scheduler_of, cache):
    """MLX tells whoever waits first, in any thread: the others' layers are suspect as well."""
    questions = [request("One?", max_tokens=20), request("And two?", max_tokens=20)]
    alone = [together(scheduler_of(), one)[0].last.ids for one in questions]
    made = scheduler_of(cache)
    asked = [Reader(one) for one in questions]
    for one in asked:
        made.add(one)
    for _ in range(8):
        made.step()

    def fail():
        with pytest.raises(RuntimeError), device.work():
            raise RuntimeError(MESSAGE)

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    held = [sequence.handle for sequence in made._active()]
    assert held
    assert not any(handle.whole for handle in held)
    for joined in made._decode._batches._all():
        for layer in joined._layers:
            layer.keys, layer.values = mx.zeros_like(layer.keys), mx.zeros_like(layer.values)
    together(made)
    assert [one.last.ids for one in asked] == alone
    for again in (False, True):
        warm = [together(made, one)[0].last for one in questions]
        assert [one.ids for one in warm] == alone
        assert not again or [one.usage.prefilled for one in warm] == [1, 1]
    assert cache.check() == []


@pytest.mark.parametrize("where", ["a step", "another's beginning"])
@pytest.mark.parametrize("count", [1, 2])
def test_law_1_garbage_that_was_read_behind_a_failure_elsewhere_is_told_to_nobody(
    scheduler_of, cache, monkeypatch, where, count
):
    """The failure is counted, the tokens are read without an error, and are none of the model's."""
    asked = [
        request(text, max_tokens=16, sampling=Sampling(temperature=1, seed=n))
        for n, text in enumerate(("One?", "And two?")[:count])
    ]
    alone = [together(scheduler_of(), one)[0].last.ids for one in asked]
    made = scheduler_of(cache)
    readers = [Reader(one) for one in asked]
    for one in readers:
        made.add(one)
    while sum(isinstance(event, TextDelta) for event in readers[-1].events) < 3:
        made.step()
    spoilt = []

    def fail(*given, **more):
        if not spoilt:
            for joined in made._decode._batches._all():
                joined._tokens = mx.zeros_like(joined._tokens)
                spoilt.append(joined)
            try:
                with device.work():
                    raise RuntimeError(MESSAGE)
            except RuntimeError:
                if where != "a step":
                    raise
        return real(*given, **more)

    owner, name = (batch, "forward") if where == "a step" else (made._kv, "lease")
    real = getattr(owner, name)
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, fail)
        if where != "a step":
            other = Reader(request("Three?"))
            made.add(other)
        together(made)
    assert spoilt
    assert [one.last.ids for one in readers] == alone
    assert cache.check() == []


def test_a_token_that_nobody_could_read_is_chosen_again(scheduler_of, cache, monkeypatch):
    asked = [
        request(text, max_tokens=16, sampling=Sampling(temperature=1, seed=n))
        for n, text in enumerate(("One?", "And two?"))
    ]
    alone = [together(scheduler_of(), one)[0].last.ids for one in asked]
    real, calls = Batch._values, []

    def values(batch):
        calls.extend([batch] * (len(batch.slots) == 2))
        if len(calls) == 5:
            calls.append(batch)
            batch._tokens = mx.zeros_like(batch._tokens)  # garbage, as the device left it
            raise RuntimeError(MESSAGE)
        return real(batch)

    monkeypatch.setattr(Batch, "_values", values)
    assert [one.last.ids for one in together(scheduler_of(cache), *asked)] == alone
    assert len(calls) == 6


def waits(monkeypatch):
    counted, real = [], mx.synchronize
    monkeypatch.setattr(mx, "synchronize", lambda *streams: counted.append(1) or real(*streams))
    return counted


def test_one_wait_proves_a_group_and_no_token_waits(scheduler_of, monkeypatch):
    made = scheduler_of(PromptCache("100MB"))
    counted = waits(monkeypatch)
    asked = Reader(request("One?", max_tokens=30))
    made.add(asked)
    while not any(isinstance(event, TextDelta) for event in asked.events):
        made.step()
    counted.clear()
    for _ in range(20):
        made.step()
    assert counted == []
    with monkeypatch.context() as patched:
        patched.setattr(device, "settle", lambda: counted.append("settled"))
        while made.busy:
            made.step()
    # What was computed is kept under its three tiers; then the model is at rest.
    assert counted == ["settled"] * 2


def test_law_1_what_is_not_proven_is_found_by_nobody(monkeypatch):

    cache = PromptCache("100MB")
    ids = list(range(2, 30))
    cache.insert("m", ids[:10], [rows(ids[:10])])

    def fails(*_):
        raise RuntimeError(MESSAGE)

    with monkeypatch.context() as patched:
        patched.setattr(mx, "synchronize", fails)
        for given in (ids, [*ids[:5], 99]):
            with pytest.raises(RuntimeError, match="Command buffer"):
                cache.insert("m", given, [rows(given)])
    assert cache.check() == []
    assert cache.fetch("m", ids).cached <= 10
    assert cache.fetch("m", [*ids[:5], 99, 98]).cached <= 5
    cache.insert("m", ids, [rows(ids)])
    assert cache.fetch("m", [*ids, 99]).cached == len(ids)
    assert cache.check() == []
