"""Packs of layers with windows: rows of spans that fit into their windows, else files."""

import random

import mlx.core as mx
import pytest
from killed import killed_copies
from mixed_layers import WINDOW, in_world
from mlx_lm.models.cache import KVCache, RotatingKVCache
from packed_talks import names, whole

from llm_mlx_promptcache.cache.disk.file_ids import PACK_SUFFIX
from llm_mlx_promptcache.cache.disk.files import Files
from llm_mlx_promptcache.cache.disk.store import DiskStore

DAYS = 2 * 86_400


@pytest.fixture(params=[mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])
def windows(request, worlds, monkeypatch):
    """The world with a window in place of its second layer."""
    return in_world(
        worlds, monkeypatch, lambda: [KVCache(), RotatingKVCache(WINDOW)], request.param
    )


def conversation(worlds, folder, lengths):
    """A file for each turn of so many tokens; the path and its turns' ends."""
    store = DiskStore(folder, "20MB")
    ids = random.Random(7).choices(range(1000), k=sum(lengths))
    ends = [sum(lengths[: turn + 1]) for turn in range(len(lengths))]
    for end in ends:
        worlds.put(store, ids[:end])
    store.close()
    return ids, ends


@pytest.mark.parametrize("rested", [0, DAYS], ids=["plain", "coded"])
def test_law_1_a_path_with_windows_reads_the_same_from_a_pack(windows, tmp_path, rested):
    ids, ends = conversation(windows, tmp_path, [12, 16, 9, 12, 16])
    plain = sum((tmp_path / "spans" / name).stat().st_size for name in names(tmp_path))
    store = DiskStore(tmp_path, "20MB")
    now = store._files.now() + rested
    store._files.now = lambda: now
    assert windows.compacted(store) == 1
    (name,) = names(tmp_path)
    assert name.endswith(PACK_SUFFIX)
    assert (tmp_path / "spans" / name).stat().st_size < plain
    for end in range(1, len(ids) + 1):
        assert windows.get(DiskStore(tmp_path, "20MB"), ids[:end]) == end
    fork = [*ids[: ends[1] + 3], 1001, 1002]
    windows.put(store, fork)
    assert windows.get(DiskStore(tmp_path, "20MB"), fork) == len(fork)
    whole(windows, tmp_path, [ids, fork])


def test_a_span_of_which_a_window_left_rows_out_stays_a_file_and_parts_the_path(windows, tmp_path):
    class Counted(Files):
        opened = 0

        def open(self, path):
            self.opened += 1
            return super().open(path)

    ids, _ = conversation(windows, tmp_path, [12, 12, 12, 20, 12, 12, 30])
    files = Counted()
    store = DiskStore(tmp_path, "20MB", files=files)
    assert windows.compacted(store) == 2
    kept = names(tmp_path)
    assert sorted(name.endswith(PACK_SUFFIX) for name in kept) == [False, False, True, True]
    assert windows.get(DiskStore(tmp_path, "20MB"), ids) == len(ids)
    whole(windows, tmp_path, [ids])
    # What was seen to lack rows is not looked at again.
    before = files.opened
    assert windows.compacted(store) in (0, 1)
    assert names(tmp_path) == kept
    assert files.opened == before


def test_p3_a_kill_at_any_call_of_a_pack_of_windows_leaves_whole_spans(windows, tmp_path):
    folder = tmp_path / "cache"
    ids, _ = conversation(windows, folder, [12, 9, 20, 12, 5])
    store = DiskStore(folder, "20MB")
    store._index.run(lambda index: index.log.shrink(), None)
    store.close()

    def compact(copy, files):
        windows.compacted(DiskStore(copy, "20MB", files=files))

    copies = 0
    for copy in killed_copies(folder, compact):
        whole(windows, copy, [ids])
        copies += 1
    assert copies > 10


def test_p1_a_flipped_bit_anywhere_in_a_pack_of_windows_is_a_miss(windows, tmp_path):
    ids, _ = conversation(windows, tmp_path, [12, 12, 12])
    assert windows.compacted(DiskStore(tmp_path, "20MB")) == 1
    (path,) = (tmp_path / "spans").iterdir()
    content = path.read_bytes()
    for at in random.Random(4).sample(range(len(content)), 20):
        path.write_bytes(content[:at] + bytes([content[at] ^ 8]) + content[at + 1 :])
        assert windows.get(DiskStore(tmp_path, "20MB"), ids) == 0
