"""RemoteEngine: what a host says reaches the reader, and what goes wrong is told once or mended."""

import asyncio
import logging
import socket

import pytest
from host_of import warnings_of
from scripted_host import ANSWER, BEFORE, LONG, PID, STOPS, THERE, ScriptedHost, finished, said

from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.config import KEEP_VARIABLE
from llm_mlx_promptcache.engine import pool, wire
from llm_mlx_promptcache.engine.events import Progress, TextDelta
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.host import client as clients
from llm_mlx_promptcache.host import engines, exchange, hung
from llm_mlx_promptcache.host.client import RemoteEngine
from llm_mlx_promptcache.host.engines import Where, engine_for
from llm_mlx_promptcache.host.errors import HostLost
from llm_mlx_promptcache.host.exchange import Patience, answer
from llm_mlx_promptcache.host.place import HostUnavailable
from llm_mlx_promptcache.models.errors import ModelLoadError

REQUEST = GenerationRequest((Message("user", "Who answers?"),), max_tokens=4)
QUICK = Patience(ask=0.05, loading=0.05, computing=0.05, again=0.05)
HERE = [TextDelta("here"), finished("here")]


class EngineHere:
    """The engine of this process: it says that it is here, and counts who asked."""

    def __init__(self):
        self.asked, self.loaded = 0, False

    def generate(self, request):
        self.asked += 1
        yield from HERE
        self.loaded = True

    async def agenerate(self, request):
        for event in self.generate(request):
            yield event


@pytest.fixture
def here(monkeypatch):
    engine = EngineHere()
    monkeypatch.setattr(pool, "engine_for", lambda reference: engine)
    monkeypatch.setattr(clients, "_warned", set())
    return engine


@pytest.fixture
def host(place):
    made = []

    def serve(*scripts):
        made.append(ScriptedHost(place, *scripts))
        return made[-1]

    yield serve
    for each in made:
        each.close()


async def listed(events):
    return [event async for event in events]


def generate(engine, request=REQUEST):
    return list(engine.generate(request))


def agenerate(engine, request=REQUEST):
    return asyncio.run(listed(engine.agenerate(request)))


both_ways = pytest.mark.parametrize("ask", [generate, agenerate])


@both_ways
def test_the_reader_has_the_host_s_events(host, here, ask, caplog):
    made = host(ANSWER)
    assert ask(RemoteEngine("small")) == [*BEFORE, *THERE]
    assert (here.asked, warnings_of(caplog)) == (0, [])
    (asked,) = made.asks
    assert {name: asked[name] for name in ("ask", "model", "keep")} == {
        "ask": "generate",
        "model": "small",
        "keep": 3600.0,
    }
    assert wire.from_json(asked["request"]) == REQUEST


def test_a_host_that_is_to_stay_for_ever_is_told_so(host, here, monkeypatch):
    made = host(ANSWER)
    monkeypatch.setenv(KEEP_VARIABLE, "forever")
    generate(RemoteEngine("small"))
    assert made.asks[0]["keep"] is None


def test_a_folder_is_named_by_its_whole_path(host, here, tmp_path, monkeypatch):
    made = host(ANSWER)
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    generate(engine_for("model"))
    assert made.asks[0]["model"] == str(tmp_path / "model")


@both_ways
def test_law_15_an_error_is_raised_as_it_was(host, here, ask, caplog):
    error = {"error": {"kind": "ModelLoadError", "text": "unknown model 'small'"}}
    host([*said(*BEFORE), error])
    with pytest.raises(ModelLoadError, match=r"^unknown model 'small'$"):
        ask(RemoteEngine("small"))
    assert (here.asked, warnings_of(caplog)) == (0, [])


def test_law_15_what_the_host_logs_is_logged_here(host, here, caplog):
    told = [
        {"log": [logging.WARNING, "llm_mlx_promptcache.cache.disk.store", "a span is left out"]},
        {"log": [logging.ERROR, "root", "is no logger of ours"]},
        {"log": [logging.ERROR, "llm_mlx_promptcachet", "nor is this"]},
        {"log": "nonsense"},
        {"log": [logging.ERROR, "llm_mlx_promptcache.engine"]},
        {"beat": 3},
        {"what a later version says": 1},
    ]
    host([*told, *ANSWER])
    assert generate(RemoteEngine("small")) == [*BEFORE, *THERE]
    assert [(one.name, one.levelno, one.getMessage()) for one in caplog.records] == [
        ("llm_mlx_promptcache.cache.disk.store", logging.WARNING, "a span is left out")
    ]


@both_ways
@pytest.mark.parametrize("heard", [0, 1, 2])
def test_a_host_that_ends_before_the_answer_is_asked_once_more(host, here, ask, heard, caplog):
    made = host(said(*BEFORE)[:heard], ANSWER)
    assert ask(RemoteEngine("small")) == [*BEFORE[:heard], *BEFORE, *THERE]
    assert (len(made.asks), here.asked, warnings_of(caplog)) == (2, 0, [])


LOST = [
    [],
    said(*BEFORE),
    [b"\xff\xff\xff\xff"],
    [b"\0\0\0\4nope"],
    [b"\0\0\0\x02[]"],
    [b"\0\0\1\0{"],
    [{"event": {"is": "Path", "of": {}}}],
    [{"event": wire.to_json(REQUEST)}],
    [{"event": "text"}],
    [{"error": {"kind": "HostStopped", "text": "it was sent SIGTERM"}}],
]


@both_ways
@pytest.mark.parametrize("script", LOST)
def test_a_host_that_ends_again_is_passed_by_with_one_warning(host, here, ask, script, caplog):
    made = host(script)
    engine = RemoteEngine("small")
    assert ask(engine)[-2:] == HERE
    assert (len(made.asks), here.asked) == (2, 1)
    (told,) = warnings_of(caplog)
    assert told.endswith("; this process runs the model itself")
    assert ask(engine) == HERE  # it is loaded here now
    assert (len(made.asks), here.asked, len(warnings_of(caplog))) == (2, 2, 1)


@both_ways
@pytest.mark.parametrize("script", LOST)
def test_a_host_that_ends_in_the_answer_is_an_error_of_one_line(host, here, ask, script, caplog):
    made = host([*said(*BEFORE, THERE[0]), *script])
    with pytest.raises(HostLost, match=r"^[^\n]*; what it had written .*: ask again$"):
        ask(RemoteEngine("small"))
    assert (len(made.asks), here.asked, warnings_of(caplog)) == (1, 0, [])


@both_ways
def test_a_host_that_hangs_before_the_answer_is_passed_by_and_remembered(
    host, here, ask, place, caplog
):
    made = host([STOPS])
    assert ask(RemoteEngine("small", QUICK))[-2:] == HERE
    # What it hangs with is remembered: the second try waited for that alone, like any later one.
    assert (len(made.asks), here.asked) == (2, 1)
    assert warnings_of(caplog) == [
        f"the resident host (process {PID}) hangs; end that process; this process runs the model"
        " itself"
    ]
    assert hung.is_hung(place, hung.name_with(hung.name_of(place), "small"))


def test_a_host_that_was_seen_to_hang_waits_less_and_is_believed_again(host, here, place):
    host([STOPS], [{"beat": 1}, *ANSWER])
    name = hung.name_with(hung.name_of(place), "small")
    hung.remember(place, name)
    endless = Patience(loading=1e6, again=0.05)
    assert generate(RemoteEngine("small", endless)) == [*BEFORE, *THERE]
    assert not hung.is_hung(place, name)


def test_a_host_that_hangs_in_the_answer_is_an_error(host, here):
    host([*said(*BEFORE, THERE[0]), STOPS])
    with pytest.raises(HostLost, match=rf"process {PID}\) hangs; end that process; "):
        generate(RemoteEngine("small", Patience(computing=0.05)))


class PlayedChannel:
    """A channel that says these frames, and keeps how long it was waited for each."""

    def __init__(self, frames):
        self.frames, self.waited, self.welcome = list(frames), [], {}
        self.asked = []

    def send(self, data, seconds):
        self.asked.append(data)

    def receive(self, seconds):
        self.waited.append(seconds)
        return self.frames.pop(0)


def test_a_host_that_loads_may_be_silent_longer_than_one_that_computes():
    """And any sign of life ends the short wait for one that was seen to hang."""
    loading, computing = said(*BEFORE)
    beat = {"beat": 1}
    frames = [beat, loading, beat, computing, beat, loading, computing, *said(*THERE), {"end": 1}]
    channel = PlayedChannel(frames)
    events = answer(channel, {}, Patience(loading=600, computing=120), first=2)
    assert len(list(events)) == 6
    assert channel.waited == [2, 600, 600, 600, 120, 120, 600, 120, 120, 120]


def test_the_files_of_this_process_are_looked_at_while_the_host_begins(monkeypatch):
    """That takes as long as a token: the ask is on its way by then, and no answer is believed."""
    channel = PlayedChannel([*said(*THERE), {"end": 1}])

    def replaced():
        assert (channel.asked, channel.waited) == ([{"ask": "generate"}], [])
        raise HostUnavailable("packages were changed")

    monkeypatch.setattr(exchange, "check_build", replaced)
    with pytest.raises(HostUnavailable, match="packages were changed"):
        list(answer(channel, {"ask": "generate"}, Patience(), first=2))
    assert channel.waited == []


@both_ways
def test_a_process_whose_package_was_replaced_answers_itself(host, here, ask, caplog, monkeypatch):
    host(ANSWER)

    def replaced():
        raise HostUnavailable("packages were changed")

    monkeypatch.setattr(exchange, "check_build", replaced)
    assert ask(RemoteEngine("small")) == HERE
    assert warnings_of(caplog) == ["packages were changed; this process runs the model itself"]


@both_ways
def test_a_host_that_can_not_be_had_is_told_once(here, place, ask, caplog, monkeypatch):
    def none(place, **waits):
        raise HostUnavailable("no host can be had")

    monkeypatch.setattr(clients, "connect", none)
    assert ask(RemoteEngine("small")) == ask(RemoteEngine("large")) == HERE
    assert warnings_of(caplog) == ["no host can be had; this process runs the model itself"]


@both_ways
def test_a_busy_host_of_another_build_is_passed_by(host, here, ask, caplog):
    host([{"refused": "it runs mlx 0.1, and not 0.2", "busy": 1, "stopping": False}])
    assert ask(RemoteEngine("small")) == HERE
    (told,) = warnings_of(caplog)
    assert "it runs mlx 0.1, and not 0.2; this process" in told


def test_law_15_a_name_that_is_a_folder_only_where_the_host_runs_is_asked_here(
    host, here, tmp_path, monkeypatch
):
    """Such as tmp: no folder of the user's, and none of the root's is meant."""
    made = host(ANSWER)
    monkeypatch.chdir(tmp_path)
    for name in (tmp_path.parts[1], f"{tmp_path.parts[1]}@{tmp_path.parts[1]}"):
        assert generate(RemoteEngine(name)) == HERE
    assert made.asks == []
    for name in ("default", str(tmp_path), "small", f"default@{tmp_path}"):
        assert generate(RemoteEngine(name)) == [*BEFORE, *THERE]


class Odd(str):
    """A text that JSON would give back as a plain one."""


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": ("a", "b")},
        {1: "one"},
        {"const": Odd("x")},
        {"enum": {"a", "b"}},
        {"a": object()},
        {"const": 10**5000},
    ],
)
def test_law_15_what_json_would_change_is_asked_here(host, here, schema, caplog):
    made = host(ANSWER)
    request = GenerationRequest(REQUEST.messages, schema=schema)
    assert generate(RemoteEngine("small"), request) == HERE
    assert (made.asks, here.asked, len(warnings_of(caplog))) == ([], 1, 1)


def test_a_reader_that_stops_early_frees_the_host(host, here):
    made = host([*said(*BEFORE, THERE[0]), STOPS])
    events = RemoteEngine("small").generate(REQUEST)
    assert [next(events), next(events), next(events)] == [*BEFORE, THERE[0]]
    events.close()
    assert made.left.acquire(timeout=LONG)
    assert here.asked == 0


async def test_a_cancelled_reader_frees_the_host(host, here):
    made = host([*said(*BEFORE, THERE[0]), STOPS])
    events = RemoteEngine("small").agenerate(REQUEST)
    assert [await anext(events) for _ in range(3)] == [*BEFORE, THERE[0]]
    waiting = asyncio.create_task(anext(events))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await events.aclose()
    assert made.left.acquire(timeout=LONG)
    assert (len(made.asks), here.asked) == (1, 0)


async def test_many_at_once_on_one_loop(host, here):
    host(ANSWER)
    engine = RemoteEngine("small")
    answers = await asyncio.gather(*(listed(engine.agenerate(REQUEST)) for _ in range(50)))
    assert answers == [[*BEFORE, *THERE]] * 50


def test_the_host_is_asked_what_it_holds_and_to_give_it_back(host, here):
    held = {"models": [{"model": "small", "loaded": True}, {"model": "large", "loaded": False}]}
    made = host(
        [{"result": held}],
        [{"result": held}],
        [{"result": {"unloaded": False}}],
        [{"error": {"kind": "ValueError", "text": "it does no 'unload'"}}],
    )
    assert RemoteEngine("small").loaded
    assert not RemoteEngine("large").loaded
    assert not RemoteEngine("small").unload(1.5)
    assert made.asks[-1] == {"ask": "unload", "model": "small", "seconds": 1.5}
    with pytest.raises(ValueError, match="it does no"):
        RemoteEngine("small").unload()


def test_where_no_host_runs_nothing_is_held_and_none_is_started(here, place):
    engine = RemoteEngine("small")
    assert (engine.loaded, engine.unload()) == (False, True)
    assert not place.socket.exists()


def test_a_beginning_is_warmed_as_in_an_engine_here(host, here):
    made = host([*said(Progress(1, 4, 0), finished("")), {"end": True}])
    last = RemoteEngine("small").warm([Message("system", "Be short.")], thinking=False)
    assert last == finished("")
    asked = wire.from_json(made.asks[0]["request"])
    assert (asked.warm, asked.pin, asked.thinking) == (True, True, False)


def test_front_ends_get_the_host_s_engine_unless_there_is_to_be_none(here, place, monkeypatch):
    monkeypatch.setattr(engines, "_remote", {})
    engine = engine_for("small")
    assert isinstance(engine, RemoteEngine)
    assert engine_for("small") is engine
    assert engine_for("small", Where.HERE) is here
    monkeypatch.setenv(KEEP_VARIABLE, "0")
    assert engine_for("small") is here
    monkeypatch.setenv(KEEP_VARIABLE, "5m")
    monkeypatch.delattr(socket, "AF_UNIX")
    assert engine_for("small") is here
