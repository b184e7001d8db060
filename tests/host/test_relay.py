"""Log lines of a host reach those whom they concern, once a process."""

import asyncio
import logging
import threading
import warnings

import pytest
from hosts import generate

from llm_mlx_promptcache.engine import pool
from llm_mlx_promptcache.host import server
from llm_mlx_promptcache.host.hello import hello
from llm_mlx_promptcache.host.notices import Notice, Notices
from llm_mlx_promptcache.host.relay import Relay

LOGGER = "llm_mlx_promptcache.cache.disk.store"


def notice(text, model=""):
    return Notice(logging.WARNING, LOGGER, text, model)


def always():
    return True


def never():
    return False


@pytest.fixture
def notices():
    return Notices()


def test_what_holds_is_told_once_to_each_process(notices):
    notices.hold(notice("the disk is full"), always)
    for process in (1, 2):
        assert notices.owed(process, "m") == [notice("the disk is full")]
        assert notices.owed(process, "n") == []


def test_who_was_told_as_it_happened_is_told_no_more(notices):
    notices.hold(notice("the disk is full"), always)
    notices.tell(notice("the disk is full"), 1)
    assert notices.owed(1, "m") == []
    assert notices.owed(2, "m") == [notice("the disk is full")]


def test_what_holds_no_more_is_told_to_nobody_and_told_anew_when_it_comes_back(notices):
    held = [True]
    notices.hold(notice("the disk is full"), lambda: held[0])
    assert len(notices.owed(1, "m")) == 1
    held[0] = False
    assert notices.owed(2, "m") == []
    held[0] = True
    assert notices.owed(2, "m") == []
    notices.hold(notice("the disk is full"), lambda: held[0])
    assert len(notices.owed(1, "m")) == 1


def test_what_concerns_one_model_is_told_to_who_asks_it(notices):
    notices.hold(notice("its files changed", "m"), always)
    assert notices.owed(1, "n") == []
    assert len(notices.owed(1, "m")) == 1
    notices.wait(notice("it was not kept", "m"))
    assert notices.owed(1, "n") == []
    assert notices.owed(1, "m") == [notice("it was not kept", "m")]


def test_what_happened_while_nobody_asked_is_told_to_the_next_only(notices):
    notices.wait(notice("it was not kept"))
    assert notices.owed(1, "m") == [notice("it was not kept")]
    assert notices.owed(1, "m") == notices.owed(2, "m") == []


def test_all_of_it_is_bounded(notices):
    for number in range(3000):
        notices.hold(notice(f"held {number}"), always)
        notices.wait(notice(f"waits {number}"))
        notices.owed(number, "n" if number % 2 else "m")
        notices.wait(notice(f"waits for nobody {number}", "nobody"))
    assert len(notices._held) == len(notices._waiting) == 50
    assert len(notices._told) == 1000
    assert all(known <= set(notices._held) for known in notices._told.values())
    assert len(notices.owed(-1, "m")) == 50


class Told(list):
    """The end of a relay, where its notices collect."""

    def __call__(self, told, holds):
        self.append((told, holds))


@pytest.fixture
async def relay(monkeypatch):
    """Makes a relay that hands over to a function, until the test ends."""
    made = []
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def make(tell):
        made.append(Relay(asyncio.get_running_loop(), tell))
        made[-1].listen()

    yield make
    for logger in map(logging.getLogger, ("llm_mlx_promptcache", "transformers", "mlx_lm")):
        for handler in made:
            logger.removeHandler(handler)
    logging.getLogger("huggingface_hub").removeHandler(made[0])


async def passed():
    """Let the loop do what others asked it to."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_what_any_thread_logs_is_handed_over_on_the_loop(relay):
    threads = []
    relay(lambda told, holds: threads.append((told, holds, threading.current_thread())))
    logger = logging.getLogger(LOGGER)

    def work():
        logger.warning("%s is full", "the disk", extra={"holds": always})
        logger.info("nobody needs that")

    await asyncio.to_thread(work)
    await passed()
    assert threads == [(notice("the disk is full"), always, threading.main_thread())]


async def test_libraries_and_warnings_pass_under_our_name(relay):
    told = Told()
    relay(told)
    logging.getLogger("mlx_lm.utils").warning("a sequence is long")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        # `catch_warnings` puts back Python's own way to show them.
        warnings.showwarning = logging.getLogger("llm_mlx_promptcache").handlers[-1].warn
        warnings.warn("this is old", UserWarning, stacklevel=1)
    await passed()
    (one, _), (other, holds) = told
    assert one[1:3] == ("llm_mlx_promptcache.mlx_lm.utils", "a sequence is long")
    assert other[1:3] == ("llm_mlx_promptcache.warnings", "UserWarning: this is old")
    assert holds()


async def test_what_an_engine_logs_concerns_its_model(relay, monkeypatch):
    class Engine:
        @staticmethod
        def runs_on(thread):
            return thread == threading.get_ident() != threading.main_thread().ident

    monkeypatch.setitem(pool._engines, "its model", Engine)
    told = Told()
    relay(told)
    logging.getLogger(LOGGER).warning("on the loop")
    await asyncio.to_thread(logging.getLogger(LOGGER).warning, "elsewhere")
    await passed()
    assert [found.model for found, _ in told] == ["", "its model"]


async def test_a_record_that_can_not_be_told_disturbs_nobody(relay):
    told = Told()
    relay(told)

    class Odd:
        def __str__(self):
            raise OSError("no text")

    handler = logging.getLogger("llm_mlx_promptcache").handlers[-1]  # pytest's own would raise
    handler.handle(logging.makeLogRecord({"levelno": 30, "msg": "%s", "args": (Odd(),)}))
    logging.getLogger(LOGGER).warning("x" * 100_000)
    await passed()
    assert [len(found.text) for found, _ in told] == [4000]


def logs(frames):
    return [frame["log"][2] for frame in frames if "log" in frame]


async def test_each_process_that_asks_is_told_what_holds(
    served, client, place, tiny_llama, relay, monkeypatch
):
    """The folder of spans is a file: in a process of its own each front end would meet that."""
    relay(served.tell)
    (place.folder.parent / "spans").write_text("in the way")
    folder, full = tiny_llama(), {"hello": hello(place)}
    seen = []
    for process in (1, 1, 2, 2):
        monkeypatch.setattr(server, "peer_pid", lambda sock, process=process: process)
        frames = await (await client(full, generate(folder))).frames()
        assert frames[-1] == {"end": True}
        await asyncio.to_thread(pool.shared_cache().flush)
        await passed()
        seen.append(logs(frames))
    told = [sum("the disk cache in" in text for text in each) for each in seen]
    assert sum(told[:2]) == 1, seen
    assert sum(told[2:]) == 1, seen


async def test_two_answers_of_one_process_are_told_once_what_happens(
    served, client, place, tiny_llama, relay
):
    relay(served.tell)
    full = {"hello": hello(place)}
    folder = tiny_llama()
    askers = [await client(full, generate(folder, max_tokens=200)) for _ in range(2)]
    while len(served._asking) < 2:
        await asyncio.sleep(0.001)
    logging.getLogger(LOGGER).warning("this happens now")
    frames = await asyncio.gather(*(asker.frames() for asker in askers))
    assert sorted(map(len, map(logs, frames))) == [0, 1]
