"""Whatever happens to a pack's maker, each span is whole in one file or the other (P3, P4)."""

import errno
import os
import random
import shutil

import pytest
from killed import each_call, killed_copies
from packed_talks import dropped_alone, whole
from test_crashes import needs_strace

from llm_mlx_promptcache.cache.disk.files import Files
from llm_mlx_promptcache.cache.disk.store import DiskStore


@pytest.mark.parametrize("before", ["files", "a pack and files", "a pack with dead spans"])
def test_p3_a_kill_at_any_call_of_a_compaction_leaves_whole_spans(worlds, talk, before):
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

    def compact(copy, files):
        worlds.compacted(DiskStore(copy, "20MB", files=files))

    copies = 0
    for copy in killed_copies(folder, compact):
        whole(worlds, copy, paths)
        copies += 1
    assert copies > 5


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
    for at in each_call():
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
