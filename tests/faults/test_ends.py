"""Files with states behind their rows: kills, torn writes, failing calls, flips (P1, P3, P4)."""

import errno
import json
import random
import shutil
from array import array

import pytest
from killed import each_call, killed_copies
from mixed_layers import WINDOW, in_world
from mlx_lm.models.cache import ArraysCache, KVCache, RotatingKVCache
from test_crashes import power_cuts

from llm_mlx_promptcache.cache.disk.span_file import host_tensors
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.layers.layout import cut, layout_of
from llm_mlx_promptcache.cache.span import NewSpan

TURNS = (12, 24, 36)


FIRST_LAYER = {"state": lambda: ArraysCache(2), "window": lambda: RotatingKVCache(WINDOW)}


@pytest.fixture(params=FIRST_LAYER)
def ends(request, worlds, monkeypatch):
    """The world with a state, or a window, before its layer of rows."""
    first = FIRST_LAYER[request.param]
    return in_world(worlds, monkeypatch, lambda: [first(), KVCache()])


def path_of(turns=TURNS):
    return random.Random(7).choices(range(1000), k=turns[-1])


def new_span_of(ends, ids, start):
    """A path's last turn, ready to be stored by a process that may run no MLX."""
    layers = ends.layers_for(ids)
    layout = layout_of(layers)
    pieces = cut(layout, layers, len(ids), start, len(ids))
    return NewSpan(
        ends.NAMESPACE, layout, array("I", ids), start, "user", *host_tensors(pieces), True
    )


def found_of(ends, store):
    """The tokens found of each turn of the path: the end of a turn before, or its own."""
    ids = path_of()
    found = [ends.get(store, ids[:end]) for end in TURNS]
    assert all(count in (0, *TURNS[: turn + 1]) for turn, count in enumerate(found))
    return found


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_p1_after_a_power_cut_a_hit_is_right_or_it_is_a_miss(ends, tmp_path):
    assert power_cuts(ends, tmp_path, 15, 3) > 0


def test_p3_a_kill_at_any_call_of_a_save_leaves_whole_spans(ends, tmp_path):
    ids = path_of()
    before = tmp_path / "before"
    store = DiskStore(before, "20MB")
    ends.put(store, ids[: TURNS[0]])
    store.close()
    span = new_span_of(ends, ids[: TURNS[1]], TURNS[0])

    def save(copy, files):
        DiskStore(copy, "20MB", files=files).save(span)

    found = []
    for copy in killed_copies(before, save):
        store = DiskStore(copy, "20MB")
        store.sweep(every=True)
        assert store.check() == []
        found.append(found_of(ends, store)[1])
        store.close()
    assert len(found) > 5
    assert set(found[:-1]) <= set(TURNS[:2])
    assert found[0] == TURNS[0]
    assert found[-1] == TURNS[1]


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "for ever"])
def test_p4_the_nth_call_fails_for_every_n(ends, tmp_path, sticky, caplog):
    ids = path_of()
    for at in each_call():
        folder = tmp_path / str(at)
        files = ends.Failing(errno.EIO, at, sticky)
        store = DiskStore(folder, "20MB", files=files)
        caplog.clear()
        for end in TURNS:
            ends.put(store, ids[:end])
        ends.get(store, ids)
        assert len(caplog.records) <= 2
        healthy = DiskStore(folder, "20MB")
        healthy.sweep(every=True)
        assert healthy.check() == []
        found_of(ends, healthy)
        healthy.close()
        store.close()
        if files.calls < at:
            break


def test_p1_a_flipped_bit_anywhere_is_a_miss_or_harms_nobody(ends, tmp_path):
    """No lookup takes a wrong byte, and each damage is found by who uses it, or by `check`."""
    rng, ids = random.Random(5), path_of()
    store = DiskStore(tmp_path, "20MB")
    for _ in range(60):
        for end in TURNS:
            ends.put(store, ids[:end])
        assert found_of(ends, store) == list(TURNS)
        path = rng.choice(sorted(store.spans_folder.glob("*.safetensors")))
        flip(path, rng)
        assert len(DiskStore(tmp_path, "20MB").check()) == 1
        assert found_of(ends, store) != list(TURNS)
        store.tend()
        assert store.check() == []


def flip(path, rng, start=0):
    """Change a bit of a file, behind so many of its bytes."""
    whole = bytearray(path.read_bytes())
    bit = rng.randrange(start * 8, len(whole) * 8)
    whole[bit // 8] ^= 1 << bit % 8
    path.write_bytes(whole)


@pytest.fixture
def spoiled(ends, tmp_path):
    """A store whose path's first turn has a damaged state, or window, that nobody has seen yet."""
    folder, ids = tmp_path / "spoiled", path_of()
    store = DiskStore(folder, "20MB")
    for end in TURNS:
        ends.put(store, ids[:end])
    (first,) = store.lookup(ends.NAMESPACE, array("I", ids[: TURNS[0]])).spans
    path = store.spans_folder / f"{first.file_id}.safetensors"
    flip(path, random.Random(3), without_ends(path))
    store._index.run(lambda index: index.log.shrink(), None)
    store.close()
    return folder


def without_ends(path):
    """The bytes of a file up to where its ends begin."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return 8 + length + json.loads(file.read(length))["digest"]["data_offsets"][1]


def mended(copy, files):
    """Take damaged states out of a folder's spans."""
    DiskStore(copy, "20MB", files=files).check(fix=True)


def test_p3_a_kill_at_any_call_of_taking_a_state_out_leaves_whole_rows(ends, spoiled):
    copies = 0
    for copy in killed_copies(spoiled, mended):
        store = DiskStore(copy, "20MB")
        assert ends.get(store, path_of()) == TURNS[-1]
        store.check(fix=True)
        assert store.check() == []
        assert found_of(ends, store)[::2] == [0, TURNS[-1]]
        assert len(store._folder.names()) == len(TURNS)
        store.close()
        copies += 1
    assert copies > 5


def test_p4_the_nth_call_of_taking_a_state_out_fails_for_every_n(ends, spoiled, tmp_path, caplog):
    for at in each_call():
        copy = shutil.copytree(spoiled, tmp_path / str(at))
        files = ends.Failing(errno.EIO, at)
        caplog.clear()
        mended(copy, files)
        assert len(caplog.records) <= 2
        store = DiskStore(copy, "20MB")
        assert ends.get(store, path_of()) == TURNS[-1]
        store.check(fix=True)
        assert store.check() == []
        assert found_of(ends, store)[::2] == [0, TURNS[-1]]
        store.close()
        if files.calls < at:
            break
