"""DiskStore: files are whole and private, and never give a wrong byte."""

import os
import stat
from array import array

import mlx.core as mx
import pytest
import safetensors
from mlx_lm.models.cache import KVCache
from span_files import read_span, write_span

from llm_mlx_promptcache.cache.disk.files import Files
from llm_mlx_promptcache.cache.disk.index import Index
from llm_mlx_promptcache.cache.disk.span_file import OpenSpan, host_tensors
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.layers.kinds import KVRows, QuantizedRows
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.cache.span import DamagedSpan, Head, NewSpan

LAYOUT = (KVRows(), QuantizedRows(32, 4))
DTYPES = [mx.float32, mx.float16, mx.bfloat16]


def pieces(count, dtype=mx.float32):
    rows = tuple(mx.random.normal((1, 2, count, 4)).astype(dtype) for _ in range(2))
    packed = tuple(
        mx.random.randint(0, 9, (1, 1, count, 4)).astype(t)
        for t in (mx.uint32, dtype, dtype, mx.uint32, dtype, dtype)
    )
    return [rows, packed]


def span(count=3, dtype=mx.float32):
    tokens = array("I", range(10, 10 + count))
    return Head("name", "", 0, "user", LAYOUT, tokens, True), pieces(count, dtype)


def write(folder, count=3, dtype=mx.float32):
    """A span's file: its path, its head and its pieces."""
    head, content = span(count, dtype)
    return write_span(folder, head, content), head, content


def same(a, b):
    flat = zip((x for p in a for x in p), (x for p in b for x in p), strict=True)
    return all(x.dtype == y.dtype and bool(mx.array_equal(x, y)) for x, y in flat)


@pytest.fixture
def store(tmp_path):
    made = DiskStore(tmp_path / "cache")
    yield made
    assert made.check() == []


def save(store, tokens, start=0, tier="user"):
    ids = array("I", tokens)
    [tensors] = host_tensors(pieces(len(ids) - start))
    return store.save(NewSpan("name", LAYOUT, ids, start, tier, tensors, True))


def lookup(store, tokens):
    return store.lookup("name", array("I", tokens)).spans


def opened(store, found, tokens):
    """True if a span that was found can be opened."""
    file = store.open("name", found, array("I", tokens))
    if file is not None:
        file.close()
    return file is not None


@pytest.mark.parametrize("looked", ["check", "listing"])
def test_law_3_what_others_write_between_two_queries_is_no_damage(store, monkeypatch, looked):
    """The counters are read by a query of their own, before the rows or behind them."""
    save(store, range(10))
    other = DiskStore(store.folder)
    read, wrote = Index.totals, []

    def totals(index):
        told = read(index)
        if not wrote:
            wrote.append(True)
            save(other, [50, *range(9)])
            other.used(lookup(other, [50, *range(9)]))
            other.check()  # writes down what was used
            return told if looked == "listing" else read(index)
        return told

    with monkeypatch.context() as patch:
        patch.setattr(Index, "totals", totals)
        told = getattr(store, looked)()
    assert wrote
    assert told == [] if looked == "check" else len(told.spans) == 1
    assert store._index.mended == []
    assert len(store.listing().spans) == 2


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no advice")
def test_all_of_a_large_file_is_read_ahead(tmp_path, monkeypatch):
    """In steps: of one call for all, Linux reads only as much as a device takes in a request."""
    path, _, _ = write(tmp_path, 40_000)
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, start, size, __: asked.append((start, size)))
    monkeypatch.delattr(os, "RWF_NOWAIT", raising=False)  # nobody says that it is in memory
    opened = OpenSpan(path, Files())
    opened.read_ahead()
    opened.close()
    starts = [start for start, _ in asked]
    assert starts == [sum(size for _, size in asked[:at]) for at in range(len(asked))]
    assert sum(size for _, size in asked) >= opened.size > 4 << 20
    assert max(size for _, size in asked) <= 1 << 20


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_span_comes_back_as_it_was_written(tmp_path, dtype):
    path, head, content = write(tmp_path, 5, dtype)
    read, found = read_span(path)
    assert read == head
    assert same(found, content)


def test_other_readers_of_safetensors_open_the_file(tmp_path):
    path, _, _ = write(tmp_path)
    with safetensors.safe_open(path, "np") as file:
        assert file.get_tensor("tokens").tolist() == [10, 11, 12]
        assert file.metadata()["tier"] == "user"


def test_every_flipped_byte_is_noticed(tmp_path):
    path, _, _ = write(tmp_path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(DamagedSpan):
            read_span(path)


def test_every_shorter_file_is_noticed(tmp_path):
    path, _, _ = write(tmp_path, 1)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedSpan):
            read_span(path)


def test_law_12_only_the_owner_can_read(store):
    old = os.umask(0)
    try:
        assert save(store, [1, 2, 3])
    finally:
        os.umask(old)
    for path in [store.folder, *store.folder.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_law_12_folders_on_the_way_are_made_for_the_owner_too(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there").chmod(0o755)
    old = os.umask(0)
    try:
        assert save(DiskStore(tmp_path / "there/a/b/c"), [1, 2, 3])
    finally:
        os.umask(old)
    ways = ("there", "there/a", "there/a/b", "there/a/b/c")
    modes = [stat.S_IMODE((tmp_path / way).stat().st_mode) for way in ways]
    assert modes == [0o755, 0o700, 0o700, 0o700]


@pytest.mark.parametrize("way", ["file/a/b", "nowhere/a", "loop/a"])
def test_a_folder_that_cannot_be_made_is_one_warning_and_a_miss(tmp_path, caplog, way):
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    store = DiskStore(tmp_path / way)
    assert not save(store, [1, 2, 3])
    assert not lookup(store, [1, 2, 3])
    assert len(caplog.records) == 1


def test_a_file_that_others_can_read_is_left_out(store):
    save(store, [1, 2, 3])
    (found,) = lookup(store, [1, 2, 3])
    next(store.spans_folder.glob("*.safetensors")).chmod(0o644)
    assert not opened(store, found, [1, 2, 3])


def test_paths_part_inside_a_file_without_rewriting_it(store):
    assert save(store, [1, 2, 3, 4, 5])
    assert save(store, [1, 2, 9, 9], start=2)
    assert save(store, [1, 2, 9, 7], start=3)
    found = lookup(store, [1, 2, 9, 7, 8])
    assert [(s.start, s.end) for s in found] == [(0, 2), (2, 3), (3, 4)]
    assert store.stats()["tokens"] == 5 + 2 + 1


def test_a_span_that_is_there_or_hangs_on_nothing_is_not_written(store):
    assert save(store, [1, 2, 3])
    assert not save(store, [1, 2, 3])
    assert not save(store, [5, 6, 7, 8], start=2)
    assert store.stats()["spans"] == 1


def test_a_damaged_span_is_a_miss_and_goes_with_what_hangs_on_it(store):
    save(store, [1, 2, 3])
    save(store, [1, 2, 3, 4], start=3)
    first, _ = lookup(store, [1, 2, 3, 4])
    path = store.spans_folder / f"{first.file_id}.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    assert not opened(store, first, [1, 2, 3, 4])
    assert lookup(store, [1, 2, 3, 4]) == []
    assert store.stats()["spans"] == 0


def test_the_budget_is_kept_and_leaves_are_evicted_first(tmp_path):
    store = DiskStore(tmp_path)
    save(store, [1, 2, 3])
    one = store.stats()["bytes"]
    store = DiskStore(tmp_path, max_bytes=int(one * 3.5))
    for last in range(10):
        save(store, [1, 2, 3, 10 + last], start=3)
        assert store.stats()["bytes"] <= one * 3.5
    assert lookup(store, [1, 2, 3])[0].end == 3
    assert store.check() == []


def test_clear_removes_what_is_ours_and_nothing_else(store):
    save(store, [1, 2, 3])
    foreign = store.spans_folder / "notes.txt"
    foreign.write_text("mine")
    assert store.pin("name", array("I", [1, 2, 3]), pinned=True)
    assert (store.folder / "pins.json").exists()
    assert store.clear() > 0
    assert not (store.folder / "pins.json").exists()
    assert [p.name for p in store.spans_folder.iterdir()] == ["notes.txt"]
    assert store.stats()["spans"] == 0


def test_a_second_process_sees_what_the_first_one_stored(store):
    save(store, [1, 2, 3])
    other = DiskStore(store.folder)
    (found,) = lookup(other, [1, 2, 3])
    assert opened(other, found, [1, 2, 3])
    assert other.layout("name") == LAYOUT


def test_law_7_a_folder_that_is_a_file_is_one_warning_and_no_store(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    store = DiskStore(tmp_path / "file")
    assert lookup(store, [1]) == []
    assert not save(store, [1])
    assert store.stats()["spans"] == 0
    assert len(caplog.records) == 1


@pytest.mark.parametrize("rubbish", [b"rubbish" * 1000, b"", b"SQLite format 3\0" + bytes(5000)])
def test_law_7_a_damaged_index_is_set_aside_and_rebuilt_with_one_warning(tmp_path, rubbish, caplog):
    store = DiskStore(tmp_path)
    save(store, [1, 2, 3, 4])
    save(store, [1, 2, 7, 8], start=2)
    store.close()
    for name in ("index.sqlite", "index.sqlite-wal", "index.sqlite-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "index.sqlite").write_bytes(rubbish)
    again = DiskStore(tmp_path)
    assert [s.end for s in lookup(again, [1, 2, 7, 8])] == [2, 4]
    assert save(again, [9])
    assert len(caplog.records) <= 2
    assert again.check() == []


def test_files_of_which_a_path_uses_a_part_are_verified_and_kept(tmp_path):
    layers = [KVCache(), KVCache()]
    for layer in layers:
        layer.update_and_fetch(mx.random.normal((1, 3, 40, 4)), mx.random.normal((1, 3, 40, 4)))
    first = PromptCache("1GB", DiskStore(tmp_path))
    first.insert("m", range(40), layers)
    first.flush()
    for cut in (1, 7, 39):
        store = DiskStore(tmp_path)
        lease = PromptCache("1GB", store).fetch("m", [*range(cut), 99, 98], headroom=3)
        assert lease.cached == cut
        for found, whole in zip(lease.layers, layers, strict=True):
            assert mx.array_equal(found.keys[..., :cut, :], whole.keys[..., :cut, :])
            assert mx.array_equal(found.values[..., :cut, :], whole.values[..., :cut, :])
            assert not found.keys[..., cut:, :].any()  # what was left out is not in the layer
        assert store.stats()["spans"] == 1


@pytest.mark.parametrize("days", [0, -1, float("nan"), True])
def test_an_age_limit_is_checked(tmp_path, days):
    with pytest.raises(ValueError, match="max_days is"):
        DiskStore(tmp_path, max_days=days)


def test_what_was_not_used_for_max_days_goes(tmp_path):
    files = Files()
    store = DiskStore(tmp_path, max_days=2, files=files)
    files.now = lambda: 1_000_000.0
    save(store, [1, 2, 3])
    files.now = lambda: 1_000_000.0 + 86_400
    save(store, [4, 5, 6])
    assert store.stats()["spans"] == 2
    files.now = lambda: 1_000_000.0 + 2 * 86_400 + 4000
    save(store, [7, 8, 9])
    assert [lookup(store, [n, n + 1, n + 2]) == [] for n in (1, 4, 7)] == [True, False, False]
    assert store.check() == []
