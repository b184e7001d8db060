"""A whole path restored from the disk: any number of spans, with few descriptors."""

import gc
import json
import os
import random
import resource

import mlx.core as mx
import pytest
from played_layers import FAMILIES, layers_of, play, same

from llm_mlx_promptcache.cache.disk.descriptors import Descriptor, Few, most_open
from llm_mlx_promptcache.cache.disk.files import Files
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.prompt_cache import PromptCache

TURN = 18  # tokens; shorter ends of paths would share a file


class Counted(Files):
    """Counts what is opened, and lets a test meddle with the file that is opened next."""

    def __init__(self):
        self.opened, self.meddle = [], None

    def open(self, path):
        self.opened.append(path.name)
        if self.meddle is not None:
            self.meddle(path, self.opened.count(path.name))
        return super().open(path)


def conversation(turns, seed=1):
    return random.Random(seed).choices(range(1000), k=turns * TURN)


def stored(folder, family, turns):
    """A conversation of so many turns, each a span and a file of its own; its tokens."""
    cache, path = PromptCache("1GB", DiskStore(folder)), conversation(turns)
    layers = layers_of(family)
    for end in range(TURN, len(path) + 1, TURN):
        play(layers, path[end - TURN : end])
        cache.insert("m", path[:end], layers, "system")  # whose checkpoints all stay
    cache.flush()
    assert DiskStore(folder).stats()["spans"] == turns
    return path


@pytest.fixture
def few_descriptors():
    """Leave so many descriptors to this process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def leave(count):
        probe = Descriptor(__file__, Files())
        resource.setrlimit(resource.RLIMIT_NOFILE, (probe.number + count, before[1]))
        probe.close()

    yield leave
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("family", FAMILIES)
def test_law_1_all_spans_of_a_long_path_come_back(family, tmp_path, few_descriptors):
    turns = 260 if family == "rows" else 60
    path = stored(tmp_path, family, turns)
    cache = PromptCache("1GB", DiskStore(tmp_path))
    cache.fetch("other", [1, 2])  # the index is open
    few_descriptors(24)
    lease = cache.fetch("m", [*path, 7])
    assert (lease.cached, lease.why.reason) == (len(path), "whole")
    assert same(lease.layers, play(layers_of(family), path))
    assert DiskStore(tmp_path).stats()["spans"] == turns


@pytest.mark.parametrize("family", FAMILIES)
def test_law_1_a_path_that_leaves_a_long_one_gets_all_that_is_shared(family, tmp_path):
    path = stored(tmp_path, family, 80)
    cache = PromptCache("1GB", DiskStore(tmp_path))
    for cut in (70 * TURN, 70 * TURN + 5):
        lease = cache.fetch("m", [*path[:cut], 1001, 1002])
        assert cut - (family == "state") * (cut % TURN) == lease.cached
        assert same(lease.layers, play(layers_of(family), path[: lease.cached]))


def test_memory_and_disk_together_hold_a_long_path(tmp_path):
    path = stored(tmp_path, "rows", 80)
    cache = PromptCache("1GB", DiskStore(tmp_path))
    half = path[: 40 * TURN]
    cache.insert("m", half, play(layers_of("rows"), half))
    lease = cache.fetch("m", [*path, 7])
    assert (lease.cached, lease.from_disk) == (len(path), 40 * TURN)
    assert same(lease.layers, play(layers_of("rows"), path))


def gone(path, times):
    if times == 2:
        path.unlink()


def damaged(path):
    """A file's bytes, one of them changed that every path over its span reads: one of its rows."""
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    rows_end, _ = json.loads(content[8 : 8 + length])["digest"]["data_offsets"]
    content[8 + length + rows_end - 20] ^= 1
    return content


def another(path, times):
    """Somebody replaces the file while it is read; what it says is not what was looked up."""
    if times == 2:
        content = damaged(path)
        path.unlink()
        path.touch(mode=0o600)
        path.write_bytes(content)


def longer_by_a_pipe(path, times):
    if times == 2:
        path.unlink()
        os.mkfifo(path, 0o600)


@pytest.mark.parametrize("meddle", [gone, another, longer_by_a_pipe])
@pytest.mark.parametrize("family", FAMILIES)
def test_law_6_a_file_that_goes_while_it_waits_is_a_shorter_path_or_a_miss(
    family, meddle, tmp_path, few_descriptors
):
    path = stored(tmp_path, family, 40)
    files = Counted()
    cache = PromptCache("1GB", DiskStore(tmp_path, files=files))
    cache.fetch("other", [1, 2])
    few_descriptors(20)
    victim = None

    def once(path, times):
        nonlocal victim
        if times == 2 and victim is None:
            victim = path.name
            meddle(path, times)

    files.meddle = once
    lease = cache.fetch("m", [*path, 7])
    assert victim is not None  # it was let go of, and opened again
    assert lease.cached < len(path)
    assert lease.why.reason == "unreadable"
    assert not lease.cached or same(lease.layers, play(layers_of(family), path[: lease.cached]))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("when", ["stored", "read"])
def test_law_16_what_was_read_of_a_damaged_path_is_free_at_once(
    family, when, tmp_path, few_descriptors, caplog
):
    path, files = stored(tmp_path, family, 30), Counted()
    victim = sorted(tmp_path.glob("spans/*"))[0]
    if when == "stored":
        victim.write_bytes(damaged(victim))
    else:
        files.meddle = lambda path, times: gone(path, times) if path == victim else None
    gc.collect()
    gc.disable()
    try:
        cache = PromptCache("1GB", DiskStore(tmp_path, files=files))
        cache.fetch("other", [1, 2])
        few_descriptors(20)
        before = mx.get_active_memory()
        lease = cache.fetch("m", [*path, 7])
        assert lease.cached < len(path)
        del lease
        assert mx.get_active_memory() == before  # though records of what was told are kept
    finally:
        gc.enable()


def test_few_files_hold_descriptors_and_all_go_on_where_they_were(tmp_path):
    for name in range(9):
        (tmp_path / str(name)).write_bytes(bytes([name]) * 5)
    few, files = Few(3), [Descriptor(tmp_path / str(n), Files()) for n in range(3)]
    for file in files:
        few.use(file)
    for name in range(3, 9):
        few.make_room()
        files.append(Descriptor(tmp_path / str(name), Files()))
        few.use(files[-1])
    for _ in range(5):
        for name, file in enumerate(files):
            few.use(file)
            assert os.read(file.number, 1) == bytes([name])
            assert sum(f._number >= 0 for f in files) <= 3
    for file in files:
        file.close()
        assert file.number == -1


def test_half_of_what_is_left_may_be_open(few_descriptors):
    few_descriptors(41)
    most = most_open()
    assert most > 5
    files = [Descriptor(__file__, Files()) for _ in range(2 * most)]  # as many again are left
    for file in files:
        file.close()
    few_descriptors(2)
    assert most_open() == 1
