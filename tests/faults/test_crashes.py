"""Kills and power cuts: whole spans or none, whatever the instant (P3)."""

import os
import random
import shutil
import sqlite3

import pytest

from llm_mlx_promptcache.cache.disk.file_ids import TEMPORARY
from llm_mlx_promptcache.cache.disk.files import Files
from llm_mlx_promptcache.cache.disk.store import DiskStore

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def swept(folder):
    """The store after a crash: leftovers gone, and nothing wrong with the rest."""
    store = DiskStore(folder, "20MB")
    store.sweep(every=True)
    assert store.check() == []
    return store


def every_hit_is_right(worlds, store, seeds):
    return sum(worlds.get(store, ids) for s in seeds for ids in worlds.paths(s, 30))


def kill_pairs(worlds, child, folder, pairs, seed):
    rng = random.Random(seed)
    print("seed", seed)
    for number in range(pairs):
        two = [child("tell", folder, 10 + number % 3 + which) for which in range(2)]
        for process in two:
            process.stdout.read(rng.randint(1, 40))  # a letter for each thing that it did
        for process in two:
            process.kill()
            process.wait()
        if number % 5 == 4:
            every_hit_is_right(worlds, swept(folder), range(1, 3))
    return every_hit_is_right(worlds, swept(folder), (1, 10, 11))


def test_p3_writers_killed_at_random_instants_leave_whole_spans(worlds, child, tmp_path):
    assert kill_pairs(worlds, child, tmp_path, 3, 1) > 0


@pytest.mark.soak
def test_p3_two_hundred_kills(worlds, child, tmp_path):
    assert kill_pairs(worlds, child, tmp_path, 100, 2) > 0


CALLS = "rename,renameat,renameat2"


@needs_strace
@pytest.mark.parametrize(
    "inject",
    [f"{CALLS}:signal=KILL:when=1", "pwrite64:signal=KILL:when=9", "write:signal=KILL:when=4"],
)
def test_p3_a_kill_at_an_exact_call_leaves_whole_spans(worlds, child, tmp_path, inject):
    filled = DiskStore(tmp_path, "20MB")
    worlds.put(filled, worlds.paths(3)[0])
    filled.close()
    before = ("strace", "-f", "-qq", "-o", os.devnull, "-e", f"inject={inject}")
    process = child("once", tmp_path, 4, before=before)
    process.communicate(timeout=60)
    store = swept(tmp_path)
    every_hit_is_right(worlds, store, (3, 4))
    assert worlds.get(store, worlds.paths(3)[0]) == len(worlds.paths(3)[0])
    assert not [p for p in store.spans_folder.iterdir() if p.name.startswith(TEMPORARY)]


class Recorded(Files):
    """Everything that reached the disk's buffers, in order: files' blocks, names and removals."""

    def __init__(self):
        self.steps = []

    def create(self, path):
        self.steps.append(("create", path.name, b""))
        return _Recorder(super().create(path), path.name, self.steps)

    def replace(self, source, target):
        self.steps.append(("replace", source.name, target.name))
        super().replace(source, target)

    def unlink(self, path):
        self.steps.append(("unlink", path.name, b""))
        return super().unlink(path)


class _Recorder:
    def __init__(self, file, name, steps):
        self._file, self._name, self._steps = file, name, steps

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, block):
        self._steps.append(("write", self._name, bytes(block)))
        return self._file.write(block)


def after_a_cut(steps, rng):
    """Files as a power cut may leave them: nothing here was synced, so each block may be lost."""
    files, names = {}, {}
    for what, name, extra in steps[: rng.randrange(len(steps) + 1)]:
        if what == "create":
            files[name] = b""
            names[name] = name
        elif what == "write":
            kept = extra
            if rng.random() < 0.02:  # a page that never arrived
                page = rng.randrange(0, len(extra) + 1, 512)
                kept = extra[:page] + bytes(len(extra[page : page + 512])) + extra[page + 512 :]
            if rng.random() < 0.02:
                kept = kept[: rng.randrange(len(kept) + 1)]
            files[name] += kept
        elif what == "replace" and rng.random() < 0.9:
            names[name] = extra
        elif what == "unlink" and rng.random() < 0.9:
            names.pop(name, None)
    return {final: files[name] for name, final in names.items()}


def cut(worlds, tmp_path, steps, indices, rng, number):
    folder = tmp_path / f"cut{number}"
    (folder / "spans").mkdir(parents=True, mode=0o700)
    for name, content in after_a_cut(steps, rng).items():
        path = folder / "spans" / name
        path.write_bytes(content)
        path.chmod(0o600)
    index = rng.choice([*indices, None, b"rubbish" * 600])
    if index is not None:
        content = index if isinstance(index, bytes) else index.read_bytes()
        (folder / "index.sqlite").write_bytes(content)
    found = every_hit_is_right(worlds, DiskStore(folder, "20MB"), (1,))
    store = DiskStore(folder, "20MB")
    store.check(fix=True)
    assert store.check() == []
    store.close()
    shutil.rmtree(folder)
    return found


def power_cuts(worlds, tmp_path, count, seed):
    print("seed", seed)
    files, rng = Recorded(), random.Random(seed)
    store = DiskStore(tmp_path / "live", "20MB", files=files)
    indices = []
    for number, ids in enumerate(worlds.paths(1, 30)):
        worlds.put(store, ids)
        if number % 10 == 9:
            snapshot = tmp_path / f"index{number}"
            with sqlite3.connect(snapshot) as copy:
                store._index.run(lambda index, copy=copy: index.db.backup(copy), None)
            copy.close()
            indices.append(snapshot)
    return sum(cut(worlds, tmp_path, files.steps, indices, rng, n) for n in range(count))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_p1_after_a_power_cut_a_hit_is_right_or_it_is_a_miss(worlds, tmp_path):
    assert power_cuts(worlds, tmp_path, 25, 1) > 0


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_p1_after_many_power_cuts(worlds, tmp_path):
    assert power_cuts(worlds, tmp_path, 500, 2) > 0
