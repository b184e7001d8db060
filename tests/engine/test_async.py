"""The engine on an event loop: the same answers, many at once, and nobody is left waiting."""

import asyncio
import threading

import pytest

from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.events import Finished, TextDelta
from llm_mlx_promptcache.engine.request import GenerationRequest


def request(text="One?", **more):
    return GenerationRequest((Message("user", text),), **{"max_tokens": 8, **more})


async def last(engine, asked):
    *_, event = [event async for event in engine.agenerate(asked)]
    assert isinstance(event, Finished)
    return event


def test_an_async_answer_is_the_same(tiny_llama, engine_of):
    engine = engine_of(tiny_llama())
    *_, sync = engine.generate(request())
    assert asyncio.run(last(engine, request())).ids == sync.ids
    assert asyncio.run(last(engine, request())).text == sync.text  # a second loop, as llm makes one


def test_sixteen_at_once_share_their_prefix_while_the_loop_goes_on(tiny_llama, engine_of):
    engine = engine_of(tiny_llama())
    shared = "A long and shared beginning. " * 8

    async def all_of_them():
        beats = 0

        async def beat():
            nonlocal beats
            while True:
                beats += 1
                await asyncio.sleep(0)

        pulse = asyncio.ensure_future(beat())
        answers = await asyncio.gather(*(last(engine, request(f"{shared}{n}")) for n in range(16)))
        pulse.cancel()
        return answers, beats

    answers, beats = asyncio.run(all_of_them())
    assert sum(event.usage.cached == 0 for event in answers) == 1
    assert len({event.ids for event in answers}) > 1
    assert beats > 100


def test_errors_reach_the_one_who_asked(tiny_llama, engine_of):
    engine = engine_of(tiny_llama())
    with pytest.raises(ValueError, match="context"):
        asyncio.run(last(engine, request("word " * 3000)))
    assert asyncio.run(last(engine, request())).usage.prompt > 0


def test_a_cancelled_task_frees_the_engine(tiny_llama, engine_of):
    engine = engine_of(tiny_llama())

    async def cancelled():
        begun = asyncio.Event()

        async def endless():
            async for event in engine.agenerate(request(max_tokens=1900)):
                if isinstance(event, TextDelta):
                    begun.set()

        task = asyncio.ensure_future(endless())
        await begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return await last(engine, request())

    assert asyncio.run(cancelled()).usage.prefilled == 1


def test_what_is_taken_on_the_engine_s_thread_wakes_no_loop(tiny_llama, engine_of):
    """Events that are left come to the loop, in their order; an error there ends the answer."""
    engine = engine_of(tiny_llama())
    taken, threads = [], set()

    def take(outputs):
        threads.add(threading.get_ident())
        if any(isinstance(one, Finished) or one is None for one in outputs):
            return outputs
        taken.extend(outputs)
        return ()

    async def left():
        return [event async for event in engine.agenerate(request(drafts=False), take)]

    (end,) = asyncio.run(left())
    *events, same = engine.generate(request(drafts=False))
    assert end.ids == same.ids
    texts = [event for event in events if isinstance(event, TextDelta)]
    assert [event for event in taken if isinstance(event, TextDelta)] == texts
    assert engine.runs_on(*threads - {threading.get_ident()})

    def refuse(outputs):
        raise ValueError("not this one")

    async def refused():
        with pytest.raises(ValueError, match="not this one"):
            await anext(engine.agenerate(request(max_tokens=1900), refuse))

    asyncio.run(refused())
    while not engine.unload():  # not while it answers, which it does to its next step at most
        pass


def test_a_loop_that_is_gone_does_not_stop_the_engine(tiny_llama, engine_of):
    engine = engine_of(tiny_llama())

    async def leave():
        events = engine.agenerate(request(max_tokens=1900))
        await anext(events)

    asyncio.run(leave())
    *_, event = engine.generate(request())
    assert isinstance(event, Finished)
