"""Writers claim their files; an operation the system refuses is no damage (P3, P4, P6)."""

import errno
import os
import resource
import signal
import subprocess
import sys
import threading

import pytest

from llm_mlx_promptcache.cache.disk import shared_index, span_bytes
from llm_mlx_promptcache.cache.disk.files import Files, locked
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.layers import kinds
from llm_mlx_promptcache.cache.prompt_cache import PromptCache


class Waiting(Files):
    """A writer that waits at one of its steps until it is released."""

    def __init__(self, step):
        self.step, self.there, self.go = step, threading.Event(), threading.Event()

    def _wait(self, step):
        if step == self.step:
            self.there.set()
            assert self.go.wait(60)

    def create(self, path):
        file = super().create(path)
        self._wait("create")
        return file

    def replace(self, source, target):
        self._wait("before the name")
        super().replace(source, target)
        self._wait("after the name")


@pytest.mark.parametrize("step", ["create", "before the name", "after the name"])
def test_p6_check_beside_a_writer_reports_and_removes_nothing(
    worlds, tmp_path, ids, step, monkeypatch
):
    # Once its file has its name the writer holds the index, and it waits for this test.
    monkeypatch.setattr(shared_index, "COMMAND_SECONDS", 0.05)
    monkeypatch.setattr(shared_index, "WRITE_SECONDS", 0.05)
    DiskStore(tmp_path).stats()
    files = Waiting(step)
    writer, span, saved = DiskStore(tmp_path, files=files), worlds.new_span(ids), []
    thread = threading.Thread(target=lambda: saved.append(writer.save(span)))
    thread.start()
    assert files.there.wait(60)
    other, before = DiskStore(tmp_path), worlds.names(writer)
    assert other.check() == []
    assert other.check(fix=True) == []
    other.sweep(every=True)
    assert worlds.names(writer) == before
    files.go.set()
    thread.join()
    assert saved == [True]
    assert DiskStore(tmp_path).check() == []
    assert worlds.get(DiskStore(tmp_path), ids) == len(ids)


HOLDING = """
import sys, time
from pathlib import Path
from llm_mlx_promptcache.cache.disk.files import Files, locked
file = Files().create(Path(sys.argv[1])); print("there", flush=True); time.sleep(600)
"""


def test_p3_what_a_stopped_writer_claims_stays_and_what_a_dead_one_left_goes(tmp_path, ids, worlds):
    """However old it is, and whoever has its process's number."""
    store = DiskStore(tmp_path)
    worlds.put(store, ids)
    claimed = store.spans_folder / f".tmp-1-{'ab' * 16}"
    command = [
        sys.executable,
        "-c",
        HOLDING.replace("Files().create", "f = Files().create"),
        claimed,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout.readline() == "there\n"
            writer.send_signal(signal.SIGSTOP)
            os.utime(claimed, (0, 0))
            store.check(fix=True)
            store.sweep()
            store.sweep(every=True)
            assert claimed.exists()
        finally:
            writer.kill()
    store.sweep()
    assert not claimed.exists()


def test_p3_a_whole_file_without_a_row_is_taken_in_again(worlds, tmp_path):
    """As after a power cut that lost the index's last rows."""
    store = DiskStore(tmp_path)
    for path in worlds.paths(3, 5):
        worlds.put(store, path)
    before = worlds.names(store)
    store._index.run(lambda index: index.drop(index.file_ids()[0]), None)
    assert any("a file and no row" in line for line in store.check())
    store.sweep()
    assert worlds.names(store) == before
    assert store.check() == []


@pytest.mark.parametrize("spare", [0, 1, 3])
def test_p4_no_descriptors_left_is_a_miss_and_deletes_nothing(worlds, tmp_path, caplog, spare):
    store, path = DiskStore(tmp_path), list(range(500))
    cache = PromptCache("1GB", store)
    for end in range(20, 500, 20):
        cache.insert("m", path[:end], worlds.layers_for(path[:end]))
        cache.flush()
    before = worlds.names(store)
    held = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(tmp_path, os.O_RDONLY)  # the lowest number, below which all are taken
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + spare, held[1]))
    try:
        lease = PromptCache("1GB", store).fetch("m", path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, held)
    assert lease.cached == 0 or spare
    assert worlds.names(store) == before
    assert len(caplog.records) == (lease.cached < 480)
    assert PromptCache("1GB", DiskStore(tmp_path)).fetch("m", path).cached == 480
    assert store.check() == []


ERRORS = [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EIO, errno.EINVAL]


class CannotOpen(Files):
    def __init__(self, error):
        self.error = error

    def open(self, path):
        raise OSError(self.error, os.strerror(self.error))


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("call", ["open", "read"])
def test_p4_an_error_of_the_system_deletes_nothing(
    worlds, tmp_path, ids, error, call, caplog, monkeypatch
):
    worlds.put(DiskStore(tmp_path), ids)

    def fails(descriptor, buffers):
        raise OSError(error, os.strerror(error))

    store = DiskStore(tmp_path, files=CannotOpen(error) if call == "open" else Files())
    before = worlds.names(store)
    with monkeypatch.context() as patch:
        if call == "read":
            patch.setattr(os, "readv", fails)
        for _ in range(2):
            assert worlds.get(store, ids) == 0
        told = store.check(fix=True)
    assert any("can't be read just now" in line for line in told)
    assert len(caplog.records) == 1
    assert worlds.names(store) == before
    assert worlds.get(DiskStore(tmp_path), ids) == len(ids)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[malloc] Unable to allocate")])
def test_p4_what_fails_in_the_joining_deletes_nothing(
    worlds, tmp_path, ids, error, monkeypatch, caplog
):
    store = DiskStore(tmp_path)
    worlds.put(store, ids)
    before = worlds.names(store)

    def fails(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(kinds.KVRows, "fill", fails)
        assert PromptCache("1GB", store).fetch(worlds.NAMESPACE, [*ids, 5]).cached == 0
    assert store.check() == []
    assert worlds.names(store) == before
    assert worlds.get(store, ids) == len(ids)


def test_reads_and_writes_are_bounded_and_go_on_after_short_ones(
    worlds, tmp_path, ids, monkeypatch
):
    monkeypatch.setattr(span_bytes, "MOST_A_CALL", 100)
    store, asked, real = DiskStore(tmp_path), [], os.readv

    def short(descriptor, buffers):
        asked.append(sum(buffer.nbytes for buffer in buffers))
        return real(descriptor, [buffers[0][:7]])

    monkeypatch.setattr(os, "readv", short)
    worlds.put(store, ids)
    assert worlds.get(store, ids) == len(ids)
    assert max(asked) <= 100
    assert store.check() == []


def test_p4_a_thousand_short_reads_are_no_damage(worlds, tmp_path, monkeypatch):
    store, path, real = DiskStore(tmp_path), list(range(2000)), os.readv
    worlds.put(store, path)

    def short(descriptor, buffers):
        return real(descriptor, [buffers[0][:1]])

    monkeypatch.setattr(os, "readv", short)
    assert worlds.get(store, path) == len(path)
    assert store.check() == []


class Unreadable(Files):
    """One file can't be opened just now."""

    def __init__(self, name):
        self.name = name

    def open(self, path):
        if path.name == self.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().open(path)


@pytest.mark.parametrize("every", [False, True])
def test_p4_what_hangs_on_a_file_that_is_unreadable_now_outlives_a_new_index(
    worlds, tmp_path, every
):
    """Without its row nothing below it fits; a sweep took all of that for useless."""
    store, path = DiskStore(tmp_path), list(range(60))
    for end in (20, 40, 60):
        worlds.put(store, path[:end])
    (root,) = store.listing().below()
    store.close()
    before = worlds.names(store)
    for file in store.spans_folder.iterdir():
        os.utime(file, (1e9, 1e9))  # nothing is spared for being new
    (tmp_path / "index.sqlite").unlink()
    meanwhile = DiskStore(tmp_path, files=Unreadable(root.file_id + ".safetensors"))
    assert worlds.get(meanwhile, path) == 0
    meanwhile.sweep(every=every)
    meanwhile.check(fix=True)
    assert worlds.names(store) == before
    meanwhile.close()
    later = DiskStore(tmp_path)
    later.sweep()
    assert worlds.get(later, path) == len(path)
    assert later.check() == []


def test_p4_what_can_not_be_looked_at_may_be_claimed(worlds, tmp_path, ids, monkeypatch):
    store = DiskStore(tmp_path)
    worlds.put(store, ids)
    unfinished, real = store.spans_folder / (".tmp-1-" + "a" * 32), os.open
    with Files().create(unfinished):
        os.utime(unfinished, (1e9, 1e9))

        def fails(path, *more, **named):
            if path == unfinished:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return real(path, *more, **named)

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", fails)
            store.sweep(every=True)
        assert unfinished.exists()


def test_p3_what_can_not_be_removed_holds_up_no_sweep(worlds, tmp_path, ids):
    store = DiskStore(tmp_path)
    worlds.put(store, ids)
    for name in (".tmp-1-" + "a" * 32, "b" * 32 + ".safetensors"):
        (store.spans_folder / name).mkdir()
        os.utime(store.spans_folder / name, (1e9, 1e9))
    left = store.spans_folder / (".tmp-2-" + "c" * 32)
    left.touch()
    assert store.sweep() == 1
    assert not left.exists()
    assert not store._index.off


class Kept(Files):
    """Nothing can be removed."""

    def unlink(self, path):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize("model", [None, "a/model"])
def test_p8_what_can_not_be_cleared_is_told_once(worlds, tmp_path, caplog, model):
    store = DiskStore(tmp_path, files=Kept())
    store.label(worlds.NAMESPACE, "a/model")
    for path in worlds.paths(1, 3):
        worlds.put(store, path)
    store.clear(model=model)
    told = [record.getMessage() for record in caplog.records]
    assert sum("could not be removed" in line for line in told) == 1


def test_p3_a_fork_holds_no_lock_that_its_parent_let_go_of(tmp_path):
    with locked(tmp_path):
        child = os.fork()
        if not child:
            signal.pause()
    try:
        with locked(tmp_path, wait=False) as alone:
            assert alone
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_check_reads_in_blocks(worlds, tmp_path, monkeypatch):
    monkeypatch.setattr(span_bytes, "_BLOCK", 1000)
    store, path, asked, real = DiskStore(tmp_path), list(range(2000)), [], os.readv
    worlds.put(store, path)

    def seen(descriptor, buffers):
        asked.extend(buffer.nbytes for buffer in buffers)
        return real(descriptor, buffers)

    monkeypatch.setattr(os, "readv", seen)
    assert store.check() == []
    assert max(asked) <= 8000  # the tokens
    assert sum(asked) > 2000 * worlds.ROW


def test_p8_a_file_that_is_cleared_before_it_has_its_name_is_not_stored(worlds, tmp_path, ids):
    files = Waiting("before the name")
    writer, span, saved = DiskStore(tmp_path, files=files), worlds.new_span(ids), []
    thread = threading.Thread(target=lambda: saved.append(writer.save(span)))
    thread.start()
    assert files.there.wait(60)
    (unfinished,) = writer.spans_folder.iterdir()
    unfinished.unlink()
    files.go.set()
    thread.join()
    assert saved == [False]
    assert DiskStore(tmp_path).check() == []
