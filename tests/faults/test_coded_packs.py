"""Bfloat16 rows in fewer bytes: bit for bit the same, or a miss, whatever a file says (P1, P2)."""

import errno
import random
import shutil
import time
from contextlib import closing
from itertools import count
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
import zstandard
from forged_files import BOMBS, first_array, forged, framed, recoded
from killed import each_call, killed_copies
from normal_layers import normal_layers

from llm_mlx_promptcache.cache import lookup
from llm_mlx_promptcache.cache.disk import bandwidth, coding, pack_file, span_header
from llm_mlx_promptcache.cache.disk.chains import CODED_AFTER
from llm_mlx_promptcache.cache.disk.files import Files
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.prompt_cache import PromptCache

TOKENS = list(range(120))
TURN = 20


class Later(Files):
    """A clock by which everything stored now has rested."""

    def now(self):
        return time.time() + CODED_AFTER + 60


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """So that an array has several, the last one shorter."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (pack_file, span_header):
            patch.setattr(module, "BLOCK_BYTES", 3000)
        yield


def layers_of(dtype=mx.bfloat16):
    return normal_layers(len(TOKENS), 16, dtype)


def stored(folder, dtype=mx.bfloat16):
    """A conversation, a file for each turn; its bytes."""
    store = DiskStore(folder, "20MB")
    cache = PromptCache("1GB", store)
    for end in range(TURN, len(TOKENS) + 1, TURN):
        cache.insert("m", TOKENS[:end], layers_of(dtype))
    cache.flush()
    store._index.run(lambda index: index.log.shrink(), None)
    store.close()
    return sum(path.stat().st_size for path in (folder / "spans").iterdir())


def got(folder, end=120, dtype=mx.bfloat16):
    """The number of tokens found; an error if one bit differs."""
    lease = PromptCache("1GB", DiskStore(folder, "20MB")).fetch("m", [*TOKENS[:end], 999])
    for found, whole in zip(lease.layers or (), layers_of(dtype), strict=False):
        for one, other in ((found.keys, whole.keys), (found.values, whole.values)):
            pair = [a[..., : lease.cached, :].view(mx.uint8) for a in (one, other)]
            assert mx.array_equal(*pair), "a wrong bit"
    return lease.cached


def coded(folder, files=None):
    *_, done = DiskStore(folder, "20MB", files=files or Later()).compact()
    return done.packs


@pytest.fixture
def packed(tmp_path):
    folder = tmp_path / "cache"
    before = stored(folder)
    assert coded(folder) == 1
    (path,) = (folder / "spans").iterdir()
    return folder, path, before


def test_rows_come_back_bit_for_bit_wherever_a_path_leaves_them(packed):
    folder, _, _ = packed
    for end in (120, 119, 100, 33, 20, 7):
        assert got(folder, end) == end
    assert DiskStore(folder).check() == []


def test_every_pattern_of_bits_comes_back(tmp_path):
    block = np.arange(1 << 16, dtype=np.uint16).tobytes()
    found = bytearray(len(block))
    coding.decoded_into(coding.coded(block), [memoryview(found)[:6], memoryview(found)[6:]])
    assert found == block


def test_what_models_hold_takes_less(tmp_path):
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((64, 4096), dtype=np.float32) * rng.lognormal(size=(64, 1))
    half = (rows.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    assert len(coding.coded(half.tobytes())) < 0.72 * half.nbytes


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_what_does_not_pay_stays_as_it_is(tmp_path, dtype):
    stored(tmp_path / "cache", dtype)
    assert coded(tmp_path / "cache") == 1
    (path,) = (tmp_path / "cache" / "spans").iterdir()
    assert b"pack/1" in path.read_bytes()[:4096]
    assert got(tmp_path / "cache", dtype=dtype) == len(TOKENS)
    assert [
        done for done in DiskStore(tmp_path / "cache", files=Later()).compact() if done.packs
    ] == []


def test_what_was_just_written_is_packed_and_not_coded(tmp_path):
    stored(tmp_path / "cache")
    assert coded(tmp_path / "cache", Files()) == 1
    (path,) = (tmp_path / "cache" / "spans").iterdir()
    assert b"pack/1" in path.read_bytes()[:4096]
    assert coded(tmp_path / "cache") == 1  # once it has rested
    (path,) = (tmp_path / "cache" / "spans").iterdir()
    assert b"pack/2" in path.read_bytes()[:4096]
    assert got(tmp_path / "cache") == len(TOKENS)


def test_what_is_dead_leaves_a_coded_pack_too(packed):
    folder, path, _ = packed
    store = DiskStore(folder, "20MB")
    spans = sorted(store.listing().spans, key=lambda span: span.start)

    def drop(index):
        with index.transaction():
            index.drop(spans[3].file_id)

    store._index.run(drop, None)
    while not store.tend():
        pass
    assert not path.exists()
    assert store.stats()["dead"] == 0
    assert store.check() == []
    assert got(folder) == 60


def test_p1_a_flipped_bit_anywhere_in_a_coded_pack_is_a_miss(packed):
    folder, path, _ = packed
    content = path.read_bytes()
    for at in random.Random(6).sample(range(len(content)), 40):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        assert got(folder) == 0


@pytest.mark.parametrize("slow", ["coded", "plain"])
def test_law_7_coded_rows_and_plain_ones_are_each_read_where_that_is_faster(
    packed, monkeypatch, slow
):
    folder, _, _ = packed
    paths = {"coded": TOKENS, "plain": [1000 + token for token in TOKENS]}
    with closing(DiskStore(folder, "20MB")) as store:
        cache = PromptCache("1GB", store)
        cache.insert("m", paths["plain"], layers_of())
        cache.flush()
    cache = PromptCache("1GB", DiskStore(folder, "20MB"))
    with monkeypatch.context() as patch:
        patch.setattr(bandwidth, "_LEAST_BYTES", 0)
        patch.setattr(lookup, "time", SimpleNamespace(monotonic=count(0, 1000).__next__))
        assert cache.fetch("m", [*paths[slow], 999]).cached == len(TOKENS)
    for what, path in paths.items():
        lease = cache.fetch("m", [*path, 999], prefill_speed=1e9)
        wanted = (0, "slow") if what == slow else (len(TOKENS), "whole")
        assert (lease.cached, lease.why.reason) == wanted


FORGERIES = {
    "more rows than there are": first_array(lambda c: c.__setitem__(0, [1, 2, 1 << 40, 16])),
    "more rows than anything": first_array(lambda c: c.__setitem__(0, [1 << 62, 1 << 62])),
    "rows below nothing": first_array(lambda c: c.__setitem__(0, [1, 2, -120, 16])),
    "rows that are none": first_array(lambda c: c.__setitem__(0, "many")),
    "rows that are true": first_array(lambda c: c.__setitem__(0, [True, 2, 120, 16])),
    "no rows": first_array(lambda c: c.__setitem__(0, [0])),
    "no blocks": first_array(lambda c: c[1].clear()),
    "blocks without end": first_array(lambda c: c[1].extend([1501] * 100_000)),
    "a block that is none": first_array(lambda c: c[1].__setitem__(0, "x")),
    "a block of nothing": first_array(lambda c: c[1].__setitem__(0, 0)),
    "blocks of other sizes": first_array(
        lambda c: c.__setitem__(1, [*c[1][:-2], c[1][-2] + 9, c[1][-1] - 9])
    ),
    "a number": recoded(lambda told, _: 7),
    "a list": recoded(lambda told, _: [1]),
    "an array that is not there": recoded(
        lambda told, _: told.update({"layer.9.9": told["layer.0.0"]})
    ),
    "an array less": recoded(lambda told, _: told.pop("layer.0.0") and None),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_p2_a_forged_coded_pack_is_a_miss(worlds, packed, what):
    folder, path, _ = packed
    path.write_bytes(forged(path.read_bytes(), FORGERIES[what]))
    with worlds.watched():
        assert got(folder) == 0
    store = DiskStore(folder, "20MB", files=Later())
    [*store.compact()]
    store.check(fix=True)
    assert store.check() == []


@pytest.mark.parametrize("what", BOMBS)
def test_p2_a_frame_that_is_no_frame_of_ours_is_a_miss(worlds, packed, what):
    folder, path, _ = packed
    frame = framed(what, 4 * len(TOKENS) + 1500, 1500)  # the first array's first
    path.write_bytes(forged(path.read_bytes(), lambda *_: None, frame))
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    with worlds.watched():
        assert got(folder) == 0
    assert mx.get_peak_memory() - before < 64 << 20


@pytest.mark.parametrize("rubbish", [b"", b"x" * 100, bytes(5000)])
def test_p2_a_block_that_is_none_is_refused(rubbish):
    with pytest.raises(coding.BadBlock):
        coding.decoded_into(rubbish, [memoryview(bytearray(3000))])


def test_p3_a_kill_at_any_call_of_coding_leaves_whole_spans(tmp_path):
    folder = tmp_path / "cache"
    stored(folder)

    def code(copy, files):
        files.now = Later().now
        coded(copy, files)

    for copy in killed_copies(folder, code):
        assert got(copy) == len(TOKENS)
        store = DiskStore(copy, "20MB")
        store.sweep()
        assert store.check() == []
        assert got(copy) == len(TOKENS)
        store.close()


def test_p4_the_nth_call_of_coding_fails_for_every_n(worlds, tmp_path, caplog):
    folder = tmp_path / "cache"
    stored(folder)
    for at in each_call():
        copy = tmp_path / str(at)
        shutil.copytree(folder, copy)
        files = worlds.Failing(errno.ENOSPC, at)
        files.now = Later().now
        [*DiskStore(copy, "20MB", files=files).compact()]
        assert got(copy) == len(TOKENS)
        shutil.rmtree(copy)
        if files.calls < at:
            break


@pytest.mark.parametrize("held", [1 << 26, 1499, 0])
def test_p2_a_frame_is_refused_by_what_it_says_before_it_is_unpacked(held, monkeypatch):
    frame = zstandard.ZstdCompressor().compress(bytes(held))
    monkeypatch.setattr(zstandard, "ZstdDecompressor", None)
    with pytest.raises(coding.BadBlock, match=f"says that it holds {held} bytes, not 1500"):
        coding.decoded_into(bytes(1500) + frame, [memoryview(bytearray(3000))])
