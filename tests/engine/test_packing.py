"""Files are packed while nobody asks this process, and its end waits for one step at most."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import worlds
from readers import request

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.identity import Identity
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.engine import engine as engines
from llm_mlx_promptcache.engine import pool
from llm_mlx_promptcache.engine.engine import Engine
from llm_mlx_promptcache.engine.one_machine import scheduler_here
from llm_mlx_promptcache.engine.packing import PackingThread, alone
from llm_mlx_promptcache.engine.parts import LoadReport
from llm_mlx_promptcache.models.loading import load_model


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path))
    return tmp_path


class Gate:
    """Steps that wait to be let through, one at a time."""

    def __init__(self, count=9):
        self.count, self.begun, self.taken = count, 0, []
        self.let, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.under_way = threading.Semaphore(0)

    def steps(self):
        self.begun += 1
        for number in range(self.count):
            self.under_way.release()
            assert self.let.acquire(timeout=60)
            self.taken.append(number)
            self.done.release()
            yield number

    def through(self, count):
        for _ in range(count):
            assert self.under_way.acquire(timeout=60)
            self.let.release()
            assert self.done.acquire(timeout=60)


def test_it_is_paused_by_who_asks_and_goes_on_where_it_was(home):
    gate = Gate()
    packing = PackingThread(gate.steps)
    packing.begin()
    packing.begin()
    gate.through(2)
    thread = packing._thread
    assert gate.under_way.acquire(timeout=60)
    packing.pause()
    gate.let.release()
    thread.join(60)
    assert gate.taken == [0, 1, 2]
    packing.begin()
    gate.through(6)
    packing.end()
    assert gate.taken == list(range(9))
    assert gate.begun == 1


def test_what_fails_is_told_and_the_next_time_begins_anew(home, caplog):
    begun = []

    def steps():
        begun.append(True)
        yield 1
        raise RuntimeError("something")

    packing = PackingThread(steps)
    for _ in range(2):
        packing.begin()
        packing._thread.join(60)
    assert len(begun) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "files of the disk cache could not be packed: something"
    ] * 2


def test_two_never_pack_at_once(home):
    store = pool.disk_store()
    worlds.turns(store, 2)
    gate = Gate()
    packing = PackingThread(gate.steps)
    with alone() as first, alone() as second:
        assert (first, second) == (True, False)
        packing.begin()
        if (thread := packing._thread) is not None:
            thread.join(60)
        assert gate.begun == 0
    packing.begin()
    gate.through(9)
    packing.end()


class Told:
    """A packing that only says what it is asked."""

    def __init__(self):
        self.asked, self.begun = [], threading.Event()

    def pause(self):
        self.asked.append("pause")

    def begin(self):
        self.asked.append("begin")
        self.begun.set()


def test_an_engine_begins_it_once_it_rests_and_a_request_pauses_it(tiny_llama, monkeypatch):
    monkeypatch.setattr(engines, "IDLE", 0)
    told, folder = Told(), tiny_llama()

    def load(_):
        identity, cache = Identity("tiny", "tiny"), PromptCache("100MB")
        return scheduler_here(load_model(str(folder)), identity, cache, LoadReport(packing=told))

    engine = Engine(load)
    try:
        for _ in range(2):
            told.begun.clear()
            *_, _last = engine.generate(request("One?", max_tokens=3))
            assert told.begun.wait(60)
    finally:
        engine.close()
    assert told.asked == ["pause", "begin"] * 2


def ran(code, home, *arguments):
    """The stdout of a process, which ends well and says nothing else."""
    environment = {
        **os.environ,
        "LLM_MLX_CACHED_HOME": str(home),
        "PYTHONPATH": os.pathsep.join((str(Path(worlds.__file__).parent), *sys.path)),
    }
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    done = subprocess.run(command, env=environment, timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


IDLE = """
import sys, threading
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine import engine, packing, pool
from llm_mlx_promptcache.engine.request import GenerationRequest
engine.IDLE = 0
done = threading.Event()
def steps():
    yield from packing.packing_steps(-5.0)
    done.set()
pool._packing = packing.PackingThread(steps)
request = GenerationRequest((Message("user", "What comes after two?"),), 4)
*_, last = pool.engine_for(sys.argv[1]).generate(request)
assert done.wait(50)
"""


def test_a_process_that_nobody_asks_packs_what_rested(tiny_llama, home):
    store = pool.disk_store()
    ids = worlds.turns(store, 6)
    assert len(list(store.spans_folder.iterdir())) == 6
    ran(IDLE, home, str(tiny_llama()))
    assert len(list(store.spans_folder.glob("*.pack.safetensors"))) == 1
    assert len(list(store.spans_folder.iterdir())) < 6
    assert DiskStore(store.folder).check() == []
    assert worlds.get(DiskStore(store.folder), ids) == len(ids)


LEAVING = """
import os, threading
from llm_mlx_promptcache.engine import packing
under_way, leaving = threading.Event(), threading.Event()
class Joined(threading.Thread):
    def join(self, timeout=None):
        leaving.set()
        super().join(timeout)
threading.Thread = Joined
def steps():
    for at, step in enumerate(packing.packing_steps(-5.0)):
        os.write(1, b".")
        if at == 12:
            under_way.set()
            leaving.wait(50)
        yield step
work = packing.PackingThread(steps)
work.begin()
under_way.wait(50)
"""
FORKED = """
child = os.fork()
if child:
    assert os.waitpid(child, 0)[1] == 0
    print(sum(name.startswith(".tmp-") for name in os.listdir(packing_folder)))
"""


def test_a_process_that_ends_takes_no_other_step_and_leaves_nothing_unfinished(home):
    store = pool.disk_store()
    ids = worlds.turns(store, 9)
    before = sorted(store.spans_folder.iterdir())
    assert ran(LEAVING, home) == "." * 13
    assert sorted(store.spans_folder.iterdir()) == before
    assert DiskStore(store.folder).check() == []
    assert worlds.get(DiskStore(store.folder), ids) == len(ids)
    assert worlds.compacted(store) == 1


def test_a_fork_that_ends_leaves_its_parents_packing_alone(home):
    store = pool.disk_store()
    worlds.turns(store, 9)
    folder = f"packing_folder = {str(store.spans_folder)!r}"
    assert ran(f"{LEAVING}\n{folder}\n{FORKED}", home) == "." * 13 + "1\n"
    assert worlds.compacted(store) == 1


HUNG = """
import os, threading
from llm_mlx_promptcache.engine import packing
packing._END_SECONDS = 0.01
hung = threading.Event()
def steps():
    hung.set()
    os.read(os.pipe()[0], 1)
    yield
packing.PackingThread(steps).begin()
hung.wait(50)
"""


def test_a_step_that_hangs_does_not_keep_the_process(home):
    assert ran(HUNG, home) == ""
