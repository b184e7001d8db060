"""Many requests at once: the same answers as alone, prefixes run once, faults that stay alone."""

import dataclasses
import threading

import pytest
from readers import Failing, Reader, planner_of, request, steady_clock, together

from llm_mlx_promptcache.cache.identity import Identity
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.admission import Admission, RequestMemory, fits_together
from llm_mlx_promptcache.engine.batch_layers import BatchForm
from llm_mlx_promptcache.engine.engine import Engine
from llm_mlx_promptcache.engine.events import Finished, Progress, TextDelta
from llm_mlx_promptcache.engine.kv import RowsIn
from llm_mlx_promptcache.engine.one_machine import scheduler_here
from llm_mlx_promptcache.engine.request import GenerationRequest, Sampling
from llm_mlx_promptcache.models.kv_settings import KVSettings
from llm_mlx_promptcache.models.loading import load_model

TOOL = {
    "type": "function",
    "function": {
        "name": "magic",
        "parameters": {
            "type": "object",
            "properties": {"input": {"type": "integer", "minimum": 0, "maximum": 9}},
            "required": ["input"],
        },
    },
}

VARIED = [
    request("One?"),
    request("What is two, and what comes after it in the long run of numbers?", max_tokens=20),
    request("Three?", sampling=Sampling(temperature=1.5, seed=7)),
    request("Four?", sampling=Sampling(temperature=1, seed=7, repetition_penalty=1.3, top_k=9)),
    request("Five?", schema={"type": "object", "properties": {"a": {"type": "boolean"}}}),
    request("Six?", tools=(TOOL,), tool="magic", max_tokens=90, system=False),
    request("Seven?", logprobs=2, max_tokens=5),
    request("Eight?", sampling=Sampling(temperature=0.7, seed=0), stop=("e",)),
]


def test_answers_together_are_those_alone(scheduler_of):
    alone = [together(scheduler_of(), one)[0].last for one in VARIED]
    cache = PromptCache("100MB")
    for one, other in zip(together(scheduler_of(cache), *VARIED), alone, strict=True):
        assert one.last.ids == other.ids
        assert (one.last.text, one.last.reason) == (other.text, other.reason)
        assert [call.arguments for call in one.last.tool_calls] == [
            call.arguments for call in other.tool_calls
        ]
    assert cache.check() == []


def test_rows_that_moved_to_an_answer_are_copied_back_for_who_comes_meanwhile(scheduler_of):
    """Alone, a request is given the rows of its prefix; they are copied back for the next, once."""
    cache = PromptCache("100MB")
    scheduler = scheduler_of(cache)
    text = "What is two? " * 20
    together(scheduler, request(text, warm=True))
    first = Reader(request(text, max_tokens=40))
    scheduler.add(first)
    while not any(isinstance(event, TextDelta) for event in first.events):
        scheduler.step()
    [sequence] = scheduler._active()
    assert sequence.handle.rows_in is RowsIn.LAYERS
    others = [Reader(request(text, max_tokens=2)) for _ in range(2)]
    for other in others:
        scheduler.add(other)
        while not other.events or other.events[-1] is not None:
            scheduler.step()
        assert first.events[-1] is not None
        assert other.last.usage.prefilled == 1
        assert sequence.handle.rows_in is RowsIn.CACHE
        assert sequence.handle.shared >= other.last.usage.cached
    together(scheduler)
    assert first.last.ids == together(scheduler_of(), first.request)[0].last.ids
    assert cache.check() == []


def test_short_prompts_that_come_together_answer_together(scheduler_of):
    """A step runs a chunk's worth of prompts; what they share is run by the first of them."""
    scheduler = scheduler_of()
    asked = [Reader(request(f"{n}?", system=False)) for n in range(8)]
    for one in asked:
        scheduler.add(one)
    scheduler.step()
    scheduler.step()
    reached = [[e for e in one.events if isinstance(e, Progress)][-1] for one in asked]
    assert all(last.done == last.total - 1 for last in reached)


def test_a_step_runs_no_more_than_a_chunk_of_prompts(scheduler_of):
    scheduler = scheduler_of(context=8192, planner=planner_of(32))
    asked = [Reader(request(f"{n}? " * 40, system=False)) for n in range(3)]
    for one in asked:
        scheduler.add(one)
    while scheduler.busy:
        before = _run_of_prompts(asked)
        scheduler.step()
        assert _run_of_prompts(asked) - before <= 32
    assert _run_of_prompts(asked) > 3 * 32


def _run_of_prompts(asked):
    """Tokens of their prompts that were run so far."""
    lists = [[e for e in one.events if isinstance(e, Progress)] for one in asked]
    return sum(marks[-1].done - marks[0].done for marks in lists if marks)


def test_who_joins_late_and_who_leaves_early_changes_no_answer(scheduler_of):
    alone = [together(scheduler_of(), one)[0].last.ids for one in VARIED]
    scheduler = scheduler_of()
    asked = [Reader(one) for one in VARIED]
    waiting = list(asked)
    for step in range(400):
        if step % 3 == 0 and waiting:
            scheduler.add(waiting.pop(0))
        scheduler.step()
    assert not scheduler.busy
    assert [one.last.ids for one in asked] == alone


FORCED = {
    "type": "object",
    "properties": {
        "name": {"enum": ["aaaa", "bbbb", "cccc", "dddd", "eeee"]},
        "size": {"enum": ["small", "large", "huge", "tiny"]},
        "number": {"type": "integer", "minimum": 0, "maximum": 99999},
    },
    "required": ["name", "size", "number"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "settings",
    [
        *({"temperature": 1, "seed": seed} for seed in range(3)),
        {"temperature": 1, "seed": 5, "xtc_probability": 0.5, "xtc_threshold": 0.01},
        {"presence_penalty": 2, "frequency_penalty": 1},
        {"temperature": 1, "seed": 6, "repetition_penalty": 1.5, "penalty_window": 12},
    ],
)
def test_tokens_that_a_grammar_forces_are_no_other_answer_alone(scheduler_of, settings):
    one = request("Hi?", schema=FORCED, sampling=Sampling(**settings), max_tokens=80)
    other = request("Ho!", schema=FORCED, sampling=Sampling(temperature=1, seed=99), max_tokens=80)
    [alone] = together(scheduler_of(), one)
    beside, _ = together(scheduler_of(), one, other)
    assert beside.last.ids == alone.last.ids


def test_a_prefix_that_many_ask_for_at_once_is_run_once(scheduler_of):
    cache = PromptCache("100MB")
    system = Message("system", "A long and shared beginning. " * 40)
    requests = [
        GenerationRequest((system, Message("user", f"{n}?")), max_tokens=6) for n in range(8)
    ]
    events = [one.last for one in together(scheduler_of(cache, context=4096), *requests)]
    assert sum(event.usage.cached == 0 for event in events) == 1
    shared = min(event.usage.cached for event in events if event.usage.cached)
    rests = [event.usage.prompt - shared for event in events]
    assert max(rests) < 30
    assert sum(event.usage.prefilled for event in events) == shared + sum(rests)
    assert cache.check() == []


def test_who_comes_while_another_answers_shares_its_prompt(scheduler_of):
    scheduler = scheduler_of(PromptCache("100MB"))
    first = Reader(request("One?", max_tokens=40))
    scheduler.add(first)
    for _ in range(10):
        scheduler.step()
    assert scheduler.busy
    [second] = together(scheduler, request("One? And two?"))
    assert second.last.usage.cached > second.last.usage.prompt - 40
    assert first.last.usage.generated == 40


def test_who_goes_frees_its_place_and_leaves_what_it_computed(scheduler_of):
    cache = PromptCache("100MB")
    scheduler = scheduler_of(cache, context=4096, planner=planner_of(256))
    asked = [
        Reader(request("One?", max_tokens=50), gone_after=8),
        Reader(request("words " * 200, system=False), gone_after=2),  # in the middle of its prompt
        Reader(request("Three?", max_tokens=10)),
    ]
    together(scheduler, *asked)
    assert not any(isinstance(event, Finished) for one in asked[:2] for event in one.events)
    assert asked[2].last.usage.generated == 10
    assert cache.check() == []
    again = [one.last for one in together(scheduler, request("One?"))]
    assert again[0].usage.prefilled == 1
    assert together(scheduler, request("words " * 200, system=False))[0].last.usage.cached >= 256


def failing(tiny_llama, when):
    loaded = load_model(str(tiny_llama()))
    model = Failing(loaded.model, when)
    return model, scheduler_here(
        dataclasses.replace(loaded, model=model),
        Identity("tiny", "tiny"),
        PromptCache("100MB"),
        clock=steady_clock(),
    )


def test_when_a_batch_fails_each_goes_on_alone(tiny_llama, scheduler_of):
    alone = [together(scheduler_of(), one)[0].last.ids for one in VARIED]
    # The trial before the first batch has three rows at most, and finds nothing.
    model, scheduler = failing(tiny_llama, lambda tokens: tokens.shape[0] > 3)
    asked = together(scheduler, *VARIED)
    assert model.failed == 1
    assert scheduler.batch_form is BatchForm.PLAIN
    assert [one.last.ids for one in asked] == alone
    texts = ["".join(e.text for e in one.events if isinstance(e, TextDelta)) for one in asked]
    assert texts == [one.last.text for one in asked]


def test_an_error_in_one_request_ends_that_one_alone(tiny_llama):
    poison = 250
    _, scheduler = failing(tiny_llama, lambda tokens: (tokens == poison).any().item())
    good, bad = Reader(request("One?")), Reader(request("One?", max_tokens=40))
    [before] = together(scheduler, request("One?"))
    bias = Sampling(logit_bias=((poison, 1000.0),))
    bad.request = request("Two?", sampling=bias)
    together(scheduler, good, bad)
    assert scheduler.batch_form is BatchForm.PLAIN
    assert good.last.ids == before.last.ids
    with pytest.raises(RuntimeError, match="no more memory"):
        _ = bad.last
    [after] = together(scheduler, request("One?"))
    assert after.last.ids == before.last.ids


def test_what_can_not_be_batched_takes_its_steps_beside_the_others(scheduler_of):
    requests = [*VARIED[:3], request("Nine?", kv=KVSettings(8, 32)), request("Ten?")]
    alone = [together(scheduler_of(heads=2), one)[0].last.ids for one in requests]
    assert [one.last.ids for one in together(scheduler_of(heads=2), *requests)] == alone


def test_admission_counts_padding():
    admission = Admission(RequestMemory(1000))

    class Layer:
        nbytes = 100 * 256

    admission.measure([Layer()], 100 * 256)  # a byte a token
    assert admission.admits(5000, [])  # one alone always
    assert admission.admits(400, [500])
    assert admission.admits(10, [600])  # in a batch of its own
    assert not admission.admits(10, [700])
    assert not admission.admits(400, [600])  # twice the longest
    assert not admission.admits(1, [1] * 32)
    assert fits_together(900, [1000])
    assert not fits_together(100, [4000])


def test_admission_learns_from_the_longest_prompt():
    admission = Admission(RequestMemory(2000))

    class Layer:
        def __init__(self, nbytes):
            self.nbytes = nbytes

    admission.measure([Layer(256)], 3)  # its buffer has room for 256: a byte a token
    assert admission.admits(1000, [1000])
    assert not admission.admits(1001, [1000])
    admission.measure([Layer(512)], 512)
    admission.measure([Layer(2560)], 10)  # a state, as large for one token as for all
    assert admission.admits(1000, [1000])
    admission.measure([Layer(2048)], 1024)
    assert not admission.admits(501, [500, 500])


def test_who_does_not_fit_waits_and_is_answered(scheduler_of, monkeypatch):
    scheduler = scheduler_of()
    scheduler._admission = Admission(RequestMemory(1))
    together(scheduler, request("One?"))  # learns what a token takes
    asked = [Reader(request(f"{n}?")) for n in range(3)]
    for one in asked:
        scheduler.add(one)
    most = 0
    while scheduler.busy:
        scheduler.step()
        most = max(most, len(scheduler._active()))
    assert most == 1
    assert all(one.last.usage.generated for one in asked)


def test_threads_share_a_batch(tiny_llama):
    folder = tiny_llama()
    cache = PromptCache("100MB")
    engine = Engine(
        lambda _: scheduler_here(load_model(str(folder)), Identity("tiny", "tiny"), cache)
    )
    answers = {}

    def work(number):
        *_, answers[number] = engine.generate(VARIED[number])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(VARIED))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.close()
    assert len(answers) == len(VARIED)
    assert cache.check() == []
