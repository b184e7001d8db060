"""Packs: whatever happens to their maker, each span is whole in one file or the other (P3)."""

import errno
import json
import os
import random
import shutil
import signal
import sqlite3
import threading

import pytest
import xxhash
from test_claims import Waiting
from test_crashes import needs_strace
from test_lying_rows import column, sign

from llm_mlx_promptcache.cache.disk.file_ids import PACK_SUFFIX
from llm_mlx_promptcache.cache.disk.files import Files
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.disk.upkeep import Upkeep

MOST_CALLS = 80


def names(folder):
    return sorted(path.name for path in (folder / "spans").iterdir())


@pytest.fixture
def talk(worlds, tmp_path):
    """A conversation of some turns, with a branch; nobody has its store open. Its paths."""
    store = DiskStore(tmp_path / "cache", "20MB")
    ids = worlds.turns(store, 5)
    branch = [*ids[:30], *range(1001, 1012)]
    worlds.put(store, branch)
    store._index.run(lambda index: index.log.shrink(), None)
    store.close()
    return tmp_path / "cache", [ids, branch]


def whole(worlds, folder, paths):
    """All is found, before and after a sweep, which leaves nothing; and nothing is wrong then."""
    for path in paths:
        assert worlds.get(DiskStore(folder, "20MB"), path) == len(path)
    store = DiskStore(folder, "20MB")
    store.sweep()
    assert store.check() == []
    assert not [name for name in names(folder) if name.startswith(".")]
    assert (
        sum((folder / "spans" / name).stat().st_size for name in names(folder))
        == (store.stats()["bytes"])
    )
    for path in paths:
        assert worlds.get(DiskStore(folder, "20MB"), path) == len(path)
    store.close()


def in_fork(action):
    """The signal or status that an action in a child ends with; it may run no MLX."""
    child = os.fork()
    if not child:
        try:
            action()
            os._exit(0)
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killing(worlds, at):
    """`Files` of a process that is killed at its n-th call, before or behind it."""

    class Killing(worlds.Failing):
        def _step(self):
            self.calls += 1
            if self.calls == at:
                os.kill(os.getpid(), signal.SIGKILL)

        def sync(self, file):
            self._step()
            Files.sync(self, file)

        def sync_folder(self, folder):
            Files.sync_folder(self, folder)
            self._step()

    return Killing(errno.EIO, at)


@pytest.mark.parametrize("before", ["files", "a pack and files", "a pack with dead spans"])
def test_p3_a_kill_at_any_call_of_a_compaction_leaves_whole_spans(worlds, talk, tmp_path, before):
    folder, paths = talk
    if before != "files":
        store = DiskStore(folder, "20MB")
        assert worlds.compacted(store) == 1
        if before == "a pack and files":
            paths.append([*paths[0], *range(30)])
            worlds.put(store, paths[-1])
        else:
            spans = store.lookup(worlds.NAMESPACE, worlds.array("I", paths[0])).spans
            store._index.run(lambda index: dropped_alone(index, spans[3].file_id), None)
            paths[0] = paths[0][:36]
            assert store.stats()["dead"]
        store.close()
    for at in range(1, MOST_CALLS):
        copy = tmp_path / str(at)
        shutil.copytree(folder, copy)
        files = killing(worlds, at)
        status = in_fork(lambda: worlds.compacted(DiskStore(copy, "20MB", files=files)))  # noqa: B023
        whole(worlds, copy, paths)
        shutil.rmtree(copy)
        if status == 0:
            break
        assert status == -signal.SIGKILL
    else:
        pytest.fail("more calls than were counted on")
    assert at > 5


@needs_strace
@pytest.mark.parametrize("call", ["pwrite64", "fsync", "fdatasync"])
@pytest.mark.parametrize("when", [1, 2, 3, pytest.param(5, marks=pytest.mark.soak)])
def test_p3_a_kill_of_a_compaction_in_the_index_leaves_whole_spans(worlds, talk, child, call, when):
    folder, paths = talk
    inject = f"inject={call}:signal=KILL:when={when}"
    before = ("strace", "-f", "-qq", "-o", os.devnull, "-e", inject)
    child("compact", folder, 1, "1", before=before).communicate(timeout=60)
    whole(worlds, folder, paths)


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_p4_the_nth_call_of_a_compaction_fails_for_every_n(
    worlds, talk, tmp_path, error, sticky, caplog
):
    folder, paths = talk
    for at in range(1, MOST_CALLS):
        copy = tmp_path / str(at)
        shutil.copytree(folder, copy)
        files = worlds.Failing(error, at, sticky)
        store = DiskStore(copy, "20MB", files=files)
        caplog.clear()
        worlds.compacted(store)
        assert len(caplog.records) <= 2
        store.close()
        whole(worlds, copy, paths)
        shutil.rmtree(copy)
        if files.calls < at:
            break
    else:
        pytest.fail("more calls than were counted on")


class Synced(Files):
    """The blocks that reached the disk, in order, with syncs, and the index at each removal."""

    def __init__(self, folder):
        self.steps, self._folder = [], folder
        self.names = lambda folder: Files.names(self, folder)

    def create(self, path):
        self.steps.append(("create", path.name, b""))
        return _Written(super().create(path), path.name, self.steps)

    def sync(self, file):
        super().sync(file)
        self.steps.append(("sync", file.name, b""))

    def replace(self, source, target):
        super().replace(source, target)
        self.steps.append(("replace", source.name, target.name))

    def sync_folder(self, folder):
        super().sync_folder(folder)
        self.steps.append(("sync folder", "", b""))

    def unlink(self, path):
        self.steps.append(("unlink", path.name, (self._folder / "index.sqlite-wal").read_bytes()))
        return super().unlink(path)


class _Written:
    def __init__(self, file, name, steps):
        self._file, self.name, self._steps = file, name, steps

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def fileno(self):
        return self._file.fileno()

    def write(self, block):
        self._steps.append(("write", self.name, bytes(block)))
        return self._file.write(block)


def after_a_cut(files, steps, rng):
    """The files after some steps: what was not synced may be lost, and so may names."""
    contents, names, synced, kept = {}, {name: name for name in files}, set(), set(files)
    for what, name, extra in steps:
        if what == "create":
            contents[name], names[name] = [], name
        elif what == "write":
            contents[name].append(extra)
        elif what == "sync":
            synced |= {(name, at) for at in range(len(contents[name]))}
        elif what == "replace":
            names[extra] = names.pop(name)
        elif what == "sync folder":
            kept = set(names)
        elif what == "unlink" and rng.random() < 0.5:
            names.pop(name, None)
    left = {}
    for final, name in names.items():
        if name in contents:
            if final not in kept and rng.random() < 0.3:
                continue
            blocks = enumerate(contents[name])
            lost = {at for at, _ in enumerate(contents[name]) if (name, at) not in synced}
            left[final] = b"".join(
                bytes(len(block)) if at in lost and rng.random() < 0.5 else block
                for at, block in blocks
            )
        else:
            left[final] = files[name]
    return left


def power_cuts(worlds, talk, tmp_path, count, seed):
    print("seed", seed)
    (folder, paths), rng = talk, random.Random(seed)
    before = {path.name: path.read_bytes() for path in (folder / "spans").iterdir()}
    index = (folder / "index.sqlite").read_bytes()
    recorded = Synced(folder)
    assert worlds.compacted(DiskStore(folder, "20MB", files=recorded)) == 1
    steps = recorded.steps
    first = next(at for at, step in enumerate(steps) if step[0] == "unlink")
    for number in range(count):
        at = rng.randrange(len(steps) + 1)
        cut = tmp_path / f"cut{number}"
        (cut / "spans").mkdir(parents=True, mode=0o700)
        for name, content in after_a_cut(before, steps[:at], rng).items():
            (cut / "spans" / name).write_bytes(content)
            (cut / "spans" / name).chmod(0o600)
        (cut / "index.sqlite").write_bytes(index)
        if at > first:  # the transaction was over, and synced
            (cut / "index.sqlite-wal").write_bytes(steps[first][2])
        whole(worlds, cut, paths)
        shutil.rmtree(cut)


def test_p3_a_power_cut_in_a_compaction_loses_nothing(worlds, talk, tmp_path):
    power_cuts(worlds, talk, tmp_path, 15, 1)


@pytest.mark.soak
def test_p3_many_power_cuts_in_a_compaction_lose_nothing(worlds, talk, tmp_path):
    power_cuts(worlds, talk, tmp_path, 500, 2)


@pytest.fixture
def packed(worlds, talk):
    """That conversation as a pack: its folder, its path and the pack's file."""
    folder, (ids, branch) = talk
    store = DiskStore(folder, "20MB")
    assert worlds.compacted(store) == 1
    store._index.run(lambda index: index.log.shrink(), None)
    store.close()
    (path,) = (folder / "spans").glob("*" + PACK_SUFFIX)
    return folder, ids, branch, path


def test_p1_a_flipped_bit_anywhere_in_a_pack_is_a_miss(worlds, packed):
    folder, ids, _, path = packed
    content = path.read_bytes()
    for at in random.Random(4).sample(range(len(content)), 60):
        path.write_bytes(content[:at] + bytes([content[at] ^ 8]) + content[at + 1 :])
        assert worlds.get(DiskStore(folder), ids) == 0
    path.write_bytes(content[:-40])
    store = DiskStore(folder)
    assert worlds.get(store, ids) == 0
    assert any("can't be read" in line for line in DiskStore(folder).check())
    store.check(fix=True)
    assert store.check() == []
    assert names(folder) == []  # what hung on it is gone as well


def forged(content, change):
    """A pack with another header, and a digest that fits it."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header["__metadata__"]
    spans = json.loads(metadata["spans"])
    change(metadata, spans)
    metadata.setdefault("spans", json.dumps(spans))
    if metadata["spans"] != "as it is":
        metadata["spans"] = json.dumps(spans)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    made = len(text).to_bytes(8, "little") + text + content[8 + length : -16]
    return made + xxhash.xxh3_128_digest(made)


def at_first(index, value):
    def change(_, spans):
        spans[0][index] = value

    return change


FORGERIES = {
    "another format": lambda metadata, _: metadata.update(format="llm-mlx-promptcache/4"),
    "another name": lambda metadata, _: metadata.update(file_id="ab" * 16),
    "no spans": lambda _, spans: spans.clear(),
    "one span less": lambda _, spans: spans.pop(),
    "one twice": lambda _, spans: spans.__setitem__(1, spans[0]),
    "in another order": lambda _, spans: spans.reverse(),
    "a name that is none": at_first(0, "../../mine"),
    "a strangers name": at_first(0, "cd" * 16),
    "no length": at_first(1, 0),
    "a length below nothing": at_first(1, -5),
    "a length that is none": at_first(1, "12"),
    "a length beyond": at_first(1, 1 << 62),
    "other lengths": lambda _, spans: (spans[0].__setitem__(1, 11), spans[1].__setitem__(1, 13)),
    "no tier": at_first(2, None),
    "a tier of a megabyte": at_first(2, "x" * (1 << 20)),
    "resumes perhaps": at_first(3, "yes"),
    "too many fields": lambda _, spans: spans[0].append(1),
    "starts later": lambda metadata, _: metadata.update(start="3"),
    "another parent": lambda metadata, _: metadata.update(parent="ef" * 16),
    "another model": lambda metadata, _: metadata.update(namespace="other"),
    "spans that are numbers": lambda _, spans: spans.__setitem__(0, 7),
    "spans deep inside": lambda _, spans: spans.__setitem__(0, json.loads("[" * 500 + "]" * 500)),
}


@pytest.mark.parametrize("what", FORGERIES)
@pytest.mark.parametrize("lost", [False, True], ids=["index", "no index"])
def test_p2_a_forged_pack_is_a_miss_or_right(worlds, packed, what, lost):
    folder, ids, branch, path = packed
    path.write_bytes(forged(path.read_bytes(), FORGERIES[what]))
    if lost:
        (folder / "index.sqlite").unlink()
    store = DiskStore(folder, "20MB")
    for asked in (ids, branch, ids[:20]):
        worlds.get(store, asked)
    store.tend()
    worlds.compacted(store)
    worlds.put(store, [*ids, 1, 2, 3])
    assert worlds.get(store, [*ids, 1, 2, 3]) == len(ids) + 3
    store.check(fix=True)
    assert store.check() == []
    assert not store._index.off


LIES = {
    "in nobody's pack": (column("pack", "ab" * 16), ()),
    "all in nobody's pack": (lambda rows: [r | {"pack": "ab" * 16} for r in rows], ()),
    "in no pack": (column("pack", "", (0,)), ()),
    "all in no pack": (lambda rows: [r | {"pack": ""} for r in rows], ()),
    "one more in it": (column("pack", lambda row, rows: rows[0]["pack"]), ()),
    "in a pack of elsewhere": (column("pack", "../../mine"), ()),
    "other bytes": (column("bytes", 7, (0,)), ()),
    "a huge pack": (lambda rows: None, ("UPDATE packs SET bytes = 1 << 50",)),
    "an empty pack": (lambda rows: None, ("UPDATE packs SET live = 0, spans = 0",)),
    "no packs": (lambda rows: None, ("DELETE FROM packs",)),
    "another pack": (lambda rows: None, (f"INSERT INTO packs VALUES ('{'cd' * 16}', 999, 0, 0)",)),
    "a pack that is none": (lambda rows: None, ("INSERT INTO packs VALUES ('../x', 9, 0, 0)",)),
    "live beyond": (lambda rows: None, ("UPDATE packs SET live = bytes * 2",)),
    "much is dead": (lambda rows: None, ("UPDATE totals SET dead = 1 << 50",)),
    "less than nothing is dead": (lambda rows: None, ("UPDATE totals SET dead = -5",)),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("fix", [False, True], ids=["used", "checked"])
def test_p2_a_row_that_lies_of_packs_harms_nobody(worlds, packed, lie, fix):
    folder, ids, branch, path = packed
    change, statements = LIES[lie]
    sign(folder, change, *statements)
    db = sqlite3.connect(folder / "index.sqlite", isolation_level=None)
    db.execute("UPDATE totals SET proof = spans * 3 + tokens * 5 + bytes * 7 + dead * 11")
    db.close()
    store = DiskStore(folder, "20MB")
    if not fix:
        for asked in (ids, branch):
            worlds.get(store, asked)
        store.tend(), store.sweep(), store.stats(), store.listing(), store.tend()
        worlds.compacted(store)
        worlds.put(store, [*branch, 1, 2, 3])
        assert path.exists() or worlds.get(store, ids) == len(ids)
    store.check(fix=True)
    assert store.check() == []
    assert not store._index.off
    for asked in (ids, branch):
        assert worlds.get(store, asked) == len(asked)


@pytest.mark.parametrize("lie", ["in no pack", "all in no pack", "all in nobody's pack"])
def test_p2_a_sweep_believes_no_row_that_denies_its_pack(worlds, packed, lie):
    """Such rows seem to have lost their file, and nothing would be left of the pack."""
    folder, ids, branch, path = packed
    sign(folder, LIES[lie][0])
    store = DiskStore(folder, "20MB")
    store.sweep(every=True)
    assert path.exists()
    for asked in (ids, branch):
        assert worlds.get(store, asked) == len(asked)


@pytest.mark.parametrize("call", ["check", "fix", "sweep", "every"])
@pytest.mark.parametrize("step", ["create", "before the name", "removing"])
def test_p6_nobody_takes_what_is_being_packed_for_a_leftover(worlds, talk, step, call):
    folder, paths = talk

    class Removing(Waiting):
        def unlink(self, path):
            self._wait("removing")
            return super().unlink(path)

    files = Removing(step)
    thread = threading.Thread(target=worlds.compacted, args=(DiskStore(folder, files=files),))
    thread.start()
    assert files.there.wait(60)
    other, before = DiskStore(folder), set(names(folder))
    if call in ("check", "fix"):
        assert other.check(fix=call == "fix") == []
    else:
        other.sweep(every=call == "every")
    assert set(names(folder)) == before
    for path in paths:
        assert worlds.get(other, path) == len(path)
    files.go.set()
    thread.join()
    whole(worlds, folder, paths)
    assert len(names(folder)) == 2


class PackedMeanwhile(Files):
    """A pack is made between a lookup and the opening of the n-th of its files."""

    def __init__(self, at, make):
        self.at, self.make = at, make

    def open(self, path):
        self.at -= 1
        if self.at == 0:
            self.make()
        return super().open(path)


@pytest.mark.parametrize("at", range(1, 6))
def test_p6_who_looks_a_path_up_while_it_is_packed_has_all_of_it(worlds, talk, at):
    folder, (ids, _) = talk
    other = DiskStore(folder, "20MB")
    files = PackedMeanwhile(at, lambda: worlds.compacted(other))
    store = DiskStore(folder, "20MB", files=files)
    assert worlds.get(store, ids) == len(ids)
    assert files.at <= 0
    store.tend()
    assert worlds.get(store, ids) == len(ids)


def test_p6_what_changes_while_it_is_packed_is_left_as_it_is(worlds, talk):
    folder, (ids, branch) = talk
    store, other = DiskStore(folder, "20MB"), DiskStore(folder, "20MB")
    steps = store.compact()
    for _ in range(7):
        next(steps)
    last = other.lookup(worlds.NAMESPACE, worlds.array("I", ids)).spans[-1].file_id
    other._index.run(lambda index: dropped(index, other, last), None)
    assert not [done for done in steps if done.packs]
    assert worlds.get(DiskStore(folder), branch) == len(branch)
    assert store.check() == []


def dropped(index, store, file_id):
    with index.transaction():
        index.drop(file_id)
        store._folder.span(file_id).unlink()


def test_p5_p6_packs_are_made_beside_readers_writers_and_evictions(worlds, child, tmp_path):
    """A budget of a few spans: what is packed is evicted and stored anew all the time."""
    crowd = [child("work", tmp_path, seed, "40", "60KB") for seed in (1, 2)]
    crowd += [child("compact", tmp_path, 1, "60")]
    for process in crowd:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    store = DiskStore(tmp_path, "60KB")
    store.sweep(every=True)
    assert store.check() == []
    for _ in range(100):
        if store.tend():
            break
    assert store.stats()["bytes"] <= 60_000


@pytest.mark.soak
def test_p3_packers_and_writers_are_killed_together(worlds, child, tmp_path):
    rng = random.Random(5)
    for number in range(60):
        crowd = [child("tell", tmp_path, 10 + number % 3), child("compact", tmp_path, 1, "999")]
        crowd[0].stdout.read(rng.randint(1, 60))
        for process in crowd:
            process.kill()
            process.wait()
        store = DiskStore(tmp_path, "20MB")
        store.sweep(every=True)
        assert store.check() == []
        for path in worlds.paths(1, 30):
            worlds.get(store, path)
        store.close()


def test_law_7_a_compaction_keeps_no_lock_between_two_steps(worlds, talk):
    """So who writes meanwhile waits for one transaction at most."""
    folder, _ = talk
    store, other = DiskStore(folder, "20MB"), DiskStore(folder, "20MB")
    tried = 0
    for _ in store.compact():
        assert other._index.run(lambda index: locked_for_us(index), otherwise=False)
        tried += 1
    assert tried > 5


def locked_for_us(index):
    index.wait_for_locks(0.0)
    with index.transaction():
        return True


def test_p8_a_pack_that_can_not_be_written_anew_is_cleared_whole(worlds, packed, monkeypatch):
    folder, ids, _, path = packed
    files = worlds.Failing(errno.ENOSPC, 0)
    store = DiskStore(folder, "20MB", files=files)
    store.label(worlds.NAMESPACE, "a/model", "its identity")
    store.tend()
    last = store.lookup(worlds.NAMESPACE, worlds.array("I", ids)).spans[-1].file_id
    store._index.run(lambda index: dropped_alone(index, last), None)
    real = Upkeep.clear_some
    files.at, files.sticky = -1, False

    def cleared(upkeep, *arguments, **named):
        found = real(upkeep, *arguments, **named)
        monkeypatch.setattr(files, "create", full)
        return found

    monkeypatch.setattr(Upkeep, "clear_some", cleared)
    store.clear(days=100)
    assert not path.exists()
    assert store.check() == []


def dropped_alone(index, file_id):
    with index.transaction():
        index.drop(file_id)


def full(path):
    raise OSError(errno.ENOSPC, "full")
