"""Files that are damaged, forged or not ours: a miss, never a crash, never a wrong byte (P2)."""

import os
import random
import stat
import time
from array import array

import mlx.core as mx
import pytest
from span_files import read_span, write_span
from worlds import file_of

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.layers.kinds import KVRows
from llm_mlx_promptcache.cache.span import DamagedSpan, Head


@pytest.fixture
def store(worlds, tmp_path, ids):
    made = DiskStore(tmp_path / "cache", "20MB")
    worlds.put(made, ids)
    return made


def missed(worlds, store, ids):
    """A lookup finds nothing, without waiting for anybody, and what was wrong is gone."""
    with worlds.watched():
        assert worlds.get(store, ids) == 0
    return store.stats()["spans"] == 0


def test_p1_a_flipped_bit_anywhere_is_a_miss(worlds, tmp_path):
    long = random.Random(4).choices(range(1000), k=4000)
    store = DiskStore(tmp_path, "1GB")
    rng = random.Random(5)
    worlds.put(store, long)
    for _ in range(60):
        path = file_of(store)
        whole = bytearray(path.read_bytes())
        bit = rng.randrange(len(whole) * 8)
        whole[bit // 8] ^= 1 << bit % 8
        path.write_bytes(whole)
        assert worlds.get(store, long) == 0
        worlds.put(store, long)
        assert worlds.get(store, long) == len(long)


def flip_bits_of_a_large_file(folder, count, seed):
    print("seed", seed)
    rng = random.Random(seed)
    layers = (KVRows(),) * 8
    rows = [tuple(mx.random.normal((1, 8, 4096, 32)) for _ in range(2)) for _ in layers]
    head = Head("m", "", 0, "user", layers, array("I", range(4096)), True)
    path = write_span(folder, head, rows)
    size = path.stat().st_size
    assert size > 64 << 20
    with path.open("r+b", buffering=0) as file:
        for _ in range(count):
            at, bit = rng.randrange(size), 1 << rng.randrange(8)
            byte = os.pread(file.fileno(), 1, at)[0]
            os.pwrite(file.fileno(), bytes([byte ^ bit]), at)
            with pytest.raises(DamagedSpan):
                read_span(path)
            os.pwrite(file.fileno(), bytes([byte]), at)
    assert read_span(path)[0] == head


def test_p1_a_flipped_bit_in_a_large_file_is_noticed(tmp_path):
    flip_bits_of_a_large_file(tmp_path, 20, 1)


@pytest.mark.soak
def test_p1_a_thousand_flipped_bits_in_a_large_file(tmp_path, soak_share):
    flip_bits_of_a_large_file(tmp_path, round(1000 * soak_share), 2)


@pytest.mark.parametrize("left", [0, 1, 7, 8, 9, 100, 800, -17, -16, -1])
def test_p1_a_file_cut_short_is_a_miss(worlds, store, ids, left):
    path = file_of(store)
    path.write_bytes(path.read_bytes()[:left])
    assert missed(worlds, store, ids)


def test_p1_a_file_that_vanished_is_a_miss_without_a_word(worlds, store, ids, caplog):
    file_of(store).unlink()
    assert missed(worlds, store, ids)
    assert not caplog.records


def test_p1_a_span_of_another_path_under_this_ones_name_is_a_miss(worlds, store, ids, tmp_path):
    other = DiskStore(tmp_path / "other")
    worlds.put(other, worlds.paths(7)[0])
    file_of(other).replace(file_of(store))
    assert missed(worlds, store, ids)


def test_p6_a_file_evicted_while_it_is_read_is_read_to_its_end(worlds, store, ids):
    found = store.lookup(worlds.NAMESPACE, array("I", ids)).spans[0]
    opened = store.open(worlds.NAMESPACE, found, array("I", ids))
    assert store.clear() > 0
    begin, end = opened.extent(0, worlds.LAYERS)
    opened.read_into([memoryview(bytearray(end - begin))])
    opened.verify()
    opened.close()


def as_link(path, elsewhere):
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def as_pipe(path, elsewhere):
    path.unlink()
    os.mkfifo(path, 0o600)


def as_folder(path, elsewhere):
    path.unlink()
    path.mkdir()


def as_foreign(path, elsewhere):
    if os.geteuid():
        pytest.skip("only root can give files away")
    os.chown(path, 65534, 65534)


def as_device(path, elsewhere):
    path.unlink()
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("no device can be made here")


def as_open_to_all(path, elsewhere):
    path.chmod(0o666)


@pytest.mark.parametrize(
    "turn", [as_link, as_pipe, as_folder, as_device, as_foreign, as_open_to_all]
)
def test_p7_what_is_not_our_own_plain_file_is_refused(worlds, store, ids, turn, tmp_path, caplog):
    path = file_of(store)
    turn(path, tmp_path / "elsewhere")
    assert missed(worlds, store, ids)
    (record,) = caplog.records
    said = record.getMessage().replace(path.stem, "")  # whose digits are random
    assert not any(str(word) in said for word in ids[:3] if word > 99)


def test_p7_what_is_changed_through_a_hard_link_is_a_miss(worlds, store, ids, tmp_path):
    path, other = file_of(store), tmp_path / "other"
    other.hardlink_to(path)
    assert worlds.get(store, ids) == len(ids)
    with other.open("r+b") as file:
        file.seek(-40, os.SEEK_END)
        file.write(b"forty")
    assert missed(worlds, store, ids)
    assert other.exists()  # only our own name goes


def test_p7_a_link_in_place_of_the_spans_folder_is_refused(worlds, store, ids, tmp_path, caplog):
    store.close()
    store.spans_folder.rename(tmp_path / "elsewhere")
    store.spans_folder.symlink_to(tmp_path / "elsewhere")
    assert worlds.get(DiskStore(store.folder), ids) == 0
    assert "is no folder" in caplog.text


def test_p7_folders_that_were_left_wide_are_narrowed(worlds, store, ids):
    store.close()
    store.folder.chmod(0o755)
    assert worlds.get(DiskStore(store.folder), ids) == len(ids)
    assert store.folder.stat().st_mode & 0o077 == 0


def test_p8_stale_leftovers_are_swept_and_foreign_files_never_touched(worlds, store, ids):
    spans = store.spans_folder
    old = time.time() - 7200
    foreign = [spans / "notes.txt", spans / ".tmp-notes", spans / "mine.safetensors"]
    leftovers = [spans / ".tmp-1-0123", spans / ("ab" * 16 + ".safetensors")]
    young = spans / ("cd" * 16 + ".safetensors")
    for path in [*foreign, *leftovers, young]:
        path.write_bytes(b"x")
        os.utime(path, (old, old) if path != young else None)
    dead = spans / ".tmp-4194300-aa"
    dead.write_bytes(b"x")
    assert store.sweep() == 3
    assert not dead.exists()
    assert [p.exists() for p in leftovers] == [False, False]
    assert young.exists()
    store.clear()
    assert {p.name for p in spans.iterdir()} == {p.name for p in foreign}


@pytest.mark.parametrize("when", [0, 1, 4_102_444_800])
def test_clock_and_file_times_that_jump_change_nothing_but_order(worlds, store, ids, when):
    os.utime(file_of(store), (when, when))
    store._files.now = lambda: float(when)
    worlds.put(store, worlds.paths(8)[0])
    assert store.sweep() == 0
    assert worlds.get(store, ids) == len(ids)
    assert store.stats()["spans"] >= 2
    assert store.check() == []
