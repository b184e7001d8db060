"""A host that is killed, stopped or ended under its clients: mended, or one line of error."""

import asyncio
import os
import signal
import subprocess
import sys
import threading

import forks
import host_of
import pytest
from host_of import warnings_of

from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine import pool
from llm_mlx_promptcache.engine.events import Finished, Progress, TextDelta
from llm_mlx_promptcache.engine.request import GenerationRequest, Sampling
from llm_mlx_promptcache.host import client as clients
from llm_mlx_promptcache.host import hung, start
from llm_mlx_promptcache.host.client import RemoteEngine
from llm_mlx_promptcache.host.errors import HostLost
from llm_mlx_promptcache.host.exchange import Patience
from llm_mlx_promptcache.host.start import Waits

LONG = 60
ASK = GenerationRequest((Message("user", "Hello the capital"),), max_tokens=8)
PROMPT = GenerationRequest((Message("user", "Hello the capital. " * 200),), max_tokens=8)
# Its end is forbidden, so it goes on until somebody ends it.
ENDLESS = GenerationRequest(ASK.messages, 1 << 20, Sampling(logit_bias=((2, -1000.0),)))


@pytest.fixture(scope="module")
def model(tiny_llama):
    return tiny_llama(context=1 << 21)


@pytest.fixture
def home(place, monkeypatch):
    """A home whose host, whichever it is by then, ends with the test."""
    monkeypatch.setattr(clients, "_warned", set())
    monkeypatch.setattr(start, "host_command", lambda: [forks.host(), *forks.HOST])
    folder = place.folder.parent.parent
    yield folder
    host_of.end(folder)
    pool.close_engines()


@pytest.fixture
def engine(home, model):
    return RemoteEngine(str(model))


def pid_of(home):
    return host_of.asked(home, {"ask": "ps"})["pid"]


def whole(events):
    *_, last = events
    assert isinstance(last, Finished)
    return last


def up_to(events, kind):
    """The events up to the first of a kind."""
    for event in events:
        if isinstance(event, kind):
            return event
    raise AssertionError("it ended before")


def test_killed_in_a_prompt_it_is_asked_once_more(engine, home, caplog):
    alone = whole(engine.generate(PROMPT))
    first = pid_of(home)
    host_of.end(home)
    salted = GenerationRequest(PROMPT.messages, max_tokens=8, cache_salt="new")
    events = engine.generate(salted)
    up_to(events, Progress)
    os.kill(pid_of(home), signal.SIGKILL)
    last = whole(events)
    assert (last.ids, last.text) == (alone.ids, alone.text)
    assert pid_of(home) != first
    assert warnings_of(caplog) == []


def test_killed_in_an_answer_it_is_one_line_and_the_next_ask_starts_another(engine, home, caplog):
    events = engine.generate(ENDLESS)
    up_to(events, TextDelta)
    killed = pid_of(home)
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(HostLost, match=rf"^[^\n]*process {killed}\) ended \(killed\?\); .* again$"):
        list(events)
    assert whole(engine.generate(ASK)).usage.generated > 0
    assert pid_of(home) != killed
    assert warnings_of(caplog) == []


def test_killed_while_it_writes_nothing_is_wrong_with_what_it_wrote(engine, home, place):
    one = whole(engine.generate(ASK))
    os.kill(pid_of(home), signal.SIGKILL)  # what it had computed is on its way to the disk
    again = whole(engine.generate(ASK))
    assert (again.ids, again.text) == (one.ids, one.text)
    host_of.end(home)
    assert pool.disk_store().check() == []


def test_ended_in_an_answer_it_finishes_that_and_the_next_ask_starts_another(engine, home, caplog):
    request = GenerationRequest(ENDLESS.messages, 600, ENDLESS.sampling)
    events = engine.generate(request)
    up_to(events, TextDelta)
    ended = pid_of(home)
    os.kill(ended, signal.SIGTERM)
    assert whole(events).usage.generated == 600
    assert whole(engine.generate(ASK)).usage.generated > 0
    assert pid_of(home) != ended
    assert warnings_of(caplog) == []


def test_ended_twice_in_an_answer_it_is_one_line(engine, home):
    events = engine.generate(ENDLESS)
    up_to(events, TextDelta)
    pid = pid_of(home)
    os.kill(pid, signal.SIGTERM)
    while host_of.asked(home, {"ask": "ps"})["stage"] == "serving":
        pass  # two that come at once may be one
    os.kill(pid, signal.SIGTERM)
    with pytest.raises(HostLost, match=r"\(it was sent SIGTERM\); .*: ask again$"):
        list(events)


def test_stopped_in_an_answer_it_is_one_line_and_passed_by_from_then_on(model, home, caplog):
    quick = Patience(computing=1.0, waits=Waits(hello=0.2, hung=0.01))
    engine = RemoteEngine(str(model), quick)
    events = engine.generate(ENDLESS)
    up_to(events, TextDelta)
    pid = pid_of(home)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(HostLost, match=rf"process {pid}\) hangs; end that process; "):
            list(events)
        assert whole(engine.generate(ASK)).usage.generated > 0
        (told,) = warnings_of(caplog)
        assert f"process {pid}) does not answer" in told
        assert told.endswith("; this process runs the model itself")
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_host_that_goes_on_is_believed_again(model, home, place):
    quick = Patience(waits=Waits(hello=0.2))
    whole(RemoteEngine(str(model), quick).generate(ASK))
    pid = pid_of(home)
    os.kill(pid, signal.SIGSTOP)
    whole(RemoteEngine(str(model), quick).generate(ASK))
    assert hung.is_hung(place, hung.name_of(place))
    os.kill(pid, signal.SIGCONT)
    pool.close_engines()
    patient = Patience(waits=Waits(hung=LONG))
    assert whole(RemoteEngine(str(model), patient).generate(ASK)).usage.prefilled == 1
    assert not hung.is_hung(place, hung.name_of(place))
    assert pool.engines() == {}


def test_eight_that_ask_at_once_have_one_host_that_loads_once(home, model, caplog):
    prompt = GenerationRequest(PROMPT.messages, max_tokens=4)

    async def ask():
        engines = [RemoteEngine(str(model)) for _ in range(8)]
        return await asyncio.gather(*(last_of(engine.agenerate(prompt)) for engine in engines))

    async def last_of(events):
        return [event async for event in events][-1]

    lasts = asyncio.run(ask())
    assert len({last.ids for last in lasts}) == 1
    assert sum(last.timings.load > 0 for last in lasts) == 1
    # The prompt was prefilled once, and its last token for each.
    assert sum(last.usage.prefilled for last in lasts) <= lasts[0].usage.prompt + 8
    assert warnings_of(caplog) == []


CHILD = """
import sys
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.request import GenerationRequest, Sampling
from llm_mlx_promptcache.host.engines import engine_for
request = GenerationRequest(
    (Message("user", "Hello"),), 1 << 20, Sampling(logit_bias=((2, -1000.0),))
)
for event in engine_for(sys.argv[1]).generate(request):
    print(type(event).__name__, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_client_that_is_ended_frees_its_request_and_the_host_stays(home, engine, model, number):
    command = [sys.executable, "-c", CHILD, str(model)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as child:
        while child.stdout.readline() != "TextDelta\n":
            assert child.poll() is None
        pid = pid_of(home)
        child.send_signal(number)
        assert child.wait(LONG) == -number
    until = threading.Event()
    while host_of.asked(home, {"ask": "ps"})["busy"]:
        until.wait(0.01)
    assert pid_of(home) == pid
    assert whole(engine.generate(ASK)).usage.generated > 0
