"""A restore reads all rows of a path, and the ends (states, windows) that its layers need."""

import errno
import json
import os
import sqlite3
from array import array

import mlx.core as mx
import pytest
import safetensors
import xxhash
from mlx_lm.models.cache import ArraysCache, KVCache
from played_layers import WINDOW, layers_of, play, same
from span_files import read_span, write_span

from llm_mlx_promptcache.cache.disk import span_bytes, span_file
from llm_mlx_promptcache.cache.disk.files import Files
from llm_mlx_promptcache.cache.disk.span_file import OpenSpan, host_tensors
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.layers.checkpoints import checkpoint_at
from llm_mlx_promptcache.cache.layers.ends import needs_ends
from llm_mlx_promptcache.cache.layers.errors import UnknownKind
from llm_mlx_promptcache.cache.layers.kinds import KVRows, ListOf, State, Window
from llm_mlx_promptcache.cache.layers.layout import PathPart, cut, layout_of
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.cache.span import DamagedSpan, Head, NewSpan

TURN = 20  # tokens
LAYOUT = (State(2), KVRows(), ListOf((KVRows(), State(1))), KVRows())


def ids_of(turns):
    return [(number * 31) % 97 for number in range(turns * TURN)]


def conversation(folder, family, turns):
    """A file for each turn; the path."""
    cache, layers, ids = PromptCache("1GB", DiskStore(folder)), layers_of(family), ids_of(turns)
    for end in range(TURN, len(ids) + 1, TURN):
        play(layers, ids[end - TURN : end])
        cache.insert("m", ids[:end], layers)
    cache.flush()
    return ids


def files_of(folder):
    """The files of a path, in its order."""
    return sorted((folder / "spans").iterdir(), key=lambda path: int(_metadata(path)["start"]))


def _header(path):
    with path.open("rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little")))


def _metadata(path):
    return _header(path)["__metadata__"]


def without_ends(path):
    """The bytes of a file up to where its ends begin."""
    header = _header(path)
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little") + header["digest"]["data_offsets"][1]


@pytest.fixture
def read(monkeypatch):
    """The bytes that were read of files, as the system counts them."""
    counted, real = [], os.readv

    def readv(descriptor, buffers):
        counted.append(real(descriptor, buffers))
        return counted[-1]

    monkeypatch.setattr(os, "readv", readv)
    return counted


def fetched(store, ids, family):
    """The tokens that a fresh cache finds of a path; an error if they are wrong."""
    lease = PromptCache("1GB", store).fetch("m", [*ids, 5])
    held = play(layers_of(family), ids[: lease.cached]) if lease.cached else None
    assert lease.layers is None or same(lease.layers, held)
    return lease.cached


@pytest.mark.parametrize("turns", [4, 16])
def test_what_is_read_of_a_path_with_states_grows_with_its_rows_only(tmp_path, read, turns):
    ids = conversation(tmp_path, "state", turns)
    *earlier, last = files_of(tmp_path)
    assert len(earlier) == turns - 1
    read.clear()
    assert fetched(DiskStore(tmp_path), ids, "state") == len(ids)
    assert sum(read) == sum(without_ends(path) for path in earlier) + last.stat().st_size
    states = 3 * 256 * 4
    assert all(path.stat().st_size - without_ends(path) == states + 16 for path in earlier)


def test_windows_are_read_as_far_as_they_reach_back(tmp_path, read):
    ids = conversation(tmp_path, "windows", 8)
    files = files_of(tmp_path)
    whole = -(-WINDOW // TURN)
    read.clear()
    assert fetched(DiskStore(tmp_path), ids, "windows") == len(ids)
    rows, windows = files[:-whole], files[-whole:]
    assert sum(read) == sum(map(without_ends, rows)) + sum(p.stat().st_size for p in windows)


@pytest.mark.parametrize("family", ["state", "lists", "windows"])
def test_law_1_a_path_is_resumed_at_each_of_its_spans(tmp_path, read, family):
    ids = conversation(tmp_path, family, 5)
    size = sum(path.stat().st_size for path in files_of(tmp_path))
    for end in range(TURN, len(ids) + 1, TURN):
        read.clear()
        assert fetched(DiskStore(tmp_path), ids[:end], family) == end
        assert sum(read) < size


def test_no_more_is_asked_of_the_system_than_is_read(tmp_path, monkeypatch):
    if not hasattr(os, "posix_fadvise"):
        pytest.skip("this system takes no advice")
    ids, asked = conversation(tmp_path, "state", 4), []
    monkeypatch.delattr(os, "RWF_NOWAIT", raising=False)  # nobody says that it is in memory
    monkeypatch.setattr(span_bytes, "_AHEAD", 1)
    monkeypatch.setattr(os, "posix_fadvise", lambda _, start, size, __: asked.append(size))
    assert fetched(DiskStore(tmp_path), ids, "state") == len(ids)
    *earlier, last = files_of(tmp_path)
    assert sum(asked) == sum(without_ends(path) for path in earlier) + last.stat().st_size


def flip(path, at):
    """Change a byte of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def spoiled(folder, turns=5, family="state"):
    """A conversation whose second turn has a damaged state, or window; its path and that file."""
    ids = conversation(folder, family, turns)
    second = files_of(folder)[1]
    flip(second, without_ends(second) + 40)
    return ids, second


ENDS = ["state", "lists", "windows"]


@pytest.mark.parametrize("family", ENDS)
def test_p1_a_damaged_state_goes_alone_and_only_once_it_is_used(tmp_path, family):
    ids, second = spoiled(tmp_path, 5, family)
    store = DiskStore(tmp_path)
    assert fetched(store, ids, family) == len(ids)
    store.tend()
    assert second.exists()
    # Its own end is where it is used: found, and all else stays, before and behind the mending.
    for _ in range(2):
        assert fetched(store, ids[: 2 * TURN], family) == TURN
        assert fetched(store, ids, family) == len(ids)
        store.tend()
        assert not second.exists()
    assert store.check() == []
    cache = PromptCache("1GB", store)
    lease = cache.fetch("m", [*ids[: 2 * TURN], 5])
    cache.insert("m", ids[: 2 * TURN], play(lease.layers, ids[TURN : 2 * TURN]))
    cache.flush()
    assert fetched(DiskStore(tmp_path), ids[: 2 * TURN], family) == 2 * TURN
    assert fetched(DiskStore(tmp_path), ids, family) == len(ids)
    assert store.check() == []


@pytest.mark.parametrize("family", ENDS)
def test_law_6_a_check_takes_out_a_damaged_state_and_leaves_what_hangs_on_it(tmp_path, family):
    ids, second = spoiled(tmp_path, 5, family)
    store = DiskStore(tmp_path)
    store.pin("m", array("I", ids[: 2 * TURN]), pinned=True)
    (found,) = store.check(fix=True)
    assert f"states and windows of span {second.stem} can't be read" in found
    for _ in range(2):
        store.check()
        assert store.check() == []
        assert fetched(store, ids[: 2 * TURN], family) == TURN
        assert fetched(store, ids, family) == len(ids)
        assert store.stats()["bytes"] == sum(path.stat().st_size for path in files_of(tmp_path))
        assert len(store._index.run(lambda index: index.pinned(), [])) == 1
        store.close()
        (tmp_path / "index.sqlite").unlink()  # the files alone tell it too


def test_law_6_a_state_of_which_no_rows_are_whole_goes_with_them(tmp_path):
    ids, second = spoiled(tmp_path)
    store = DiskStore(tmp_path)
    assert fetched(store, ids[: 2 * TURN], "state") == TURN
    flip(second, without_ends(second) - 40)
    store.tend()
    assert len(files_of(tmp_path)) == 1
    assert store.check() == []


def test_law_6_a_damaged_checkpoint_goes_alone_and_is_the_reason_that_is_told(tmp_path):
    """It is nothing but a state."""
    ids = conversation(tmp_path, "state", 3)
    cache = PromptCache("1GB", DiskStore(tmp_path))
    lease = cache.fetch("m", [*ids[:50], 5])
    assert (lease.cached, lease.why.reason) == (2 * TURN, "checkpoint")
    cache.insert("m", ids[:50], play(lease.layers, ids[40:50]))
    cache.flush()
    assert fetched(DiskStore(tmp_path), ids[:50], "state") == 50
    (checkpoint,) = [path for path in files_of(tmp_path) if _metadata(path)["start"] == "50"]
    flip(checkpoint, without_ends(checkpoint) + 40)
    store = DiskStore(tmp_path)
    lease = PromptCache("1GB", store).fetch("m", [*ids[:50], 5])
    assert (lease.cached, lease.why.reason) == (2 * TURN, "unreadable")
    store.tend()
    assert len(files_of(tmp_path)) == 3
    assert store.check() == []


def test_law_7_a_state_that_can_not_be_taken_out_is_left_unread(tmp_path, monkeypatch, caplog):
    ids, second = spoiled(tmp_path)
    files = Files()
    store = DiskStore(tmp_path, files=files)
    monkeypatch.setattr(files, "create", _full)
    for _ in range(3):
        assert fetched(store, ids[: 2 * TURN], "state") == TURN
        assert fetched(store, ids, "state") == len(ids)
        store.tend()
    assert second.exists()
    assert len(caplog.records) == 2
    monkeypatch.undo()
    store = DiskStore(tmp_path)
    assert fetched(store, ids[: 2 * TURN], "state") == TURN
    store.tend()
    assert not second.exists()


def _full(path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_law_16_a_path_that_lacks_rows_before_a_checkpoint_is_told_to_end_there(tmp_path, caplog):
    """As versions before this one may have left it: a file of a state without its rows."""
    ids = array("I", conversation(tmp_path, "state", 1) + ids_of(3)[TURN:])
    store = DiskStore(tmp_path)
    layers = play(layers_of("state"), ids.tolist())
    layout = layout_of(layers)
    pieces = cut(layout, layers, len(ids), TURN, len(ids))
    hole = [None if kind.anywhere else piece for kind, piece in zip(layout, pieces, strict=True)]
    state = checkpoint_at(layout, [PathPart(0, len(ids), len(ids), pieces)], len(ids))
    drafts = [NewSpan("m", layout, ids[:40], TURN, "user", *host_tensors(hole), False)]
    drafts += [NewSpan("m", layout, ids, 40, "user", *host_tensors(pieces_at(layers, 40)), False)]
    drafts += [NewSpan("m", layout, ids, len(ids), "user", *host_tensors(state), True)]
    assert all(store.save(draft) for draft in drafts)
    caplog.clear()
    lease = PromptCache("1GB", store).fetch("m", [*ids, 5])
    assert (lease.cached, lease.why.reason, lease.matched) == (TURN, "checkpoint", len(ids))
    assert caplog.records == []


def pieces_at(layers, start):
    """The rows of layers from a token on, without their state."""
    layout, end = layout_of(layers), layers[0].offset
    return [
        None if not kind.anywhere else p
        for kind, p in zip(layout, cut(layout, layers, end, start, end), strict=True)
    ]


@pytest.mark.parametrize("what", ["gone", "cut short", "another header"])
def test_law_16_a_file_that_can_not_be_opened_is_the_reason_that_is_told(tmp_path, what):
    ids = conversation(tmp_path, "state", 3)
    second = files_of(tmp_path)[1]
    if what == "gone":
        second.unlink()
    elif what == "cut short":
        os.truncate(second, 100)
    else:
        flip(second, 20)
    lease = PromptCache("1GB", DiskStore(tmp_path)).fetch("m", [*ids, 5])
    assert (lease.cached, lease.why.reason) == (TURN, "unreadable")


def test_p1_damaged_rows_are_noticed_where_the_states_behind_them_are_left(tmp_path):
    ids = conversation(tmp_path, "state", 5)
    second = files_of(tmp_path)[1]
    flip(second, without_ends(second) - 40)
    assert fetched(DiskStore(tmp_path), ids, "state") == TURN


def pieces_of(count):
    def rows():
        return tuple(mx.random.normal((1, 1, count, 4)) for _ in range(2))

    def state(size):
        return mx.random.normal((1, size))

    return [(state(8), state(4)), rows(), (*rows(), state(8)), rows()]


def write(folder, count=3, pieces=None):
    """A span's file of this layout: its path, its head and its pieces."""
    head = Head("m", "", 0, "user", LAYOUT, array("I", range(10, 10 + count)), True)
    pieces = pieces or pieces_of(count)
    return write_span(folder, head, pieces), head, pieces


def equal(found, wanted):
    pairs = zip((a for p in found for a in p), (a for p in wanted for a in p), strict=True)
    return all(mx.array_equal(a, b).item() for a, b in pairs)


def left(path):
    """A file's pieces without its ends, verified."""
    opened = OpenSpan(path, Files())
    try:
        opened.leave_ends()
        begin, end = opened.extent(0, len(LAYOUT))
        data = bytearray(end - begin)
        opened.read_into([memoryview(data)])
        opened.verify()
        return opened.pieces(0, len(LAYOUT), mx.array(memoryview(data)))
    finally:
        opened.close()


def test_a_span_comes_back_with_its_ends_and_without(tmp_path):
    path, head, pieces = write(tmp_path)
    assert read_span(path)[0] == head
    assert equal(read_span(path)[1], pieces)
    states, rows, mixed, more = left(path)
    assert states is None
    assert mixed[2] is None
    assert equal([rows, mixed[:2], more], [pieces[1], pieces[2][:2], pieces[3]])


def test_other_readers_of_safetensors_open_the_file(tmp_path):
    path, _, pieces = write(tmp_path)
    with safetensors.safe_open(path, "np") as file:
        assert file.get_tensor("layer.0.0").tolist() == pieces[0][0].tolist()


@pytest.mark.parametrize("missing", [None, *range(len(LAYOUT))])
def test_a_span_may_lack_the_pieces_of_a_layer(tmp_path, missing):
    pieces = pieces_of(3)
    if missing is not None:
        pieces[missing] = None
    path, _, _ = write(tmp_path, 3, pieces)
    found = read_span(path)[1]
    assert [piece is None for piece in found] == [piece is None for piece in pieces]
    assert equal([p for p in found if p], [p for p in pieces if p])


def test_every_flipped_byte_is_noticed(tmp_path):
    path, _, _ = write(tmp_path)
    whole, ends = path.read_bytes(), without_ends(path)
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(DamagedSpan):
            read_span(path)
        if place < ends:
            with pytest.raises(DamagedSpan):
                left(path)
        else:
            left(path)


def test_every_shorter_or_longer_file_is_noticed(tmp_path):
    path, _, _ = write(tmp_path)
    whole = path.read_bytes()
    for content in (*(whole[:length] for length in range(len(whole))), whole + b"\0"):
        path.write_bytes(content)
        for way in (read_span, left):
            with pytest.raises(DamagedSpan):
                way(path)


def test_p1_the_ends_of_another_file_are_not_this_ones(tmp_path):
    """As a power cut may leave them, where the system gives out the blocks of a removed file."""
    path, other = write(tmp_path)[0], write(tmp_path)[0]
    ends = without_ends(path)
    path.write_bytes(path.read_bytes()[:ends] + other.read_bytes()[ends:])
    left(path)
    with pytest.raises(DamagedSpan, match="digest"):
        read_span(path)


def rewritten(path, change):
    """A file with another header, whose digests fit."""
    whole, ends = path.read_bytes(), without_ends(path)
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    beginning = len(text).to_bytes(8, "little") + text
    rows, behind = whole[8 + length : ends - 16], whole[ends:-16]
    made = beginning + rows + xxhash.xxh3_128(beginning + rows).digest()
    path.write_bytes(made + behind + xxhash.xxh3_128(beginning + behind).digest())


def moved(name, by):
    def change(header):
        header[name]["data_offsets"] = [at + by for at in header[name]["data_offsets"]]

    return change


def without(*names):
    return lambda header: [header.pop(name) for name in names]


def as_one_digest(header):
    """Ends that lie before a digest of all, as in files of format 4."""
    at = 0
    digest, _ = header.pop("digest"), header.pop("digest.ends")
    for name in ("tokens", *(f"layer.{i}.{j}" for i in range(4) for j in range(3))):
        if name in header:
            begin, end = header[name]["data_offsets"]
            header[name]["data_offsets"] = [at, at := at + end - begin]
    header["digest"] = {**digest, "data_offsets": [at, at + 16]}


FORGED = {
    "nothing": lambda header: None,
    "format 4": lambda header: header["__metadata__"].update(format="llm-mlx-promptcache/4"),
    "no digest of ends": without("digest.ends"),
    "no digest": without("digest"),
    "a digest elsewhere": moved("digest", 16),
    "a digest of ends elsewhere": moved("digest.ends", -4),
    "a digest before the data": moved("digest", -(1 << 40)),
    "a digest behind the data": moved("digest", 1 << 40),
    "an end among rows": moved("layer.0.0", -200),
    "a digest that is none": lambda header: header["digest"].update(data_offsets=[0.0, True]),
    "a digest of no place": lambda header: header["digest"].update(data_offsets=[]),
    "a digest without a place": lambda header: header["digest"].pop("data_offsets"),
    "one digest of all": as_one_digest,
    "a stranger's tensor": lambda header: header.update(
        weights={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    ),
}


@pytest.mark.parametrize("what", FORGED)
def test_p2_a_forged_order_is_refused(tmp_path, what):
    path, _, _ = write(tmp_path)
    rewritten(path, FORGED[what])
    if what == "nothing":
        read_span(path)
        left(path)
        return
    for way in (read_span, left):
        with pytest.raises(DamagedSpan):
            way(path)


def old_file(path):
    """The file as format 4 had it: layer by layer, and one digest of all."""
    whole, ends = path.read_bytes(), without_ends(path)
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    data = whole[8 + length :]
    arrays = {
        name: data[slice(*entry["data_offsets"])]
        for name, entry in header.items()
        if name not in ("__metadata__", "digest", "digest.ends")
    }
    as_one_digest(header)
    header["__metadata__"]["format"] = "llm-mlx-promptcache/4"
    ordered = sorted(arrays, key=lambda name: header[name]["data_offsets"])
    text = json.dumps(header).encode()
    made = len(text).to_bytes(8, "little") + text + b"".join(arrays[name] for name in ordered)
    assert ends
    path.write_bytes(made + xxhash.xxh3_128(made).digest())


def test_files_of_format_4_are_passed_by_and_never_misread(tmp_path):
    ids = conversation(tmp_path, "state", 3)
    for path in files_of(tmp_path):
        old_file(path)
    with pytest.raises(DamagedSpan, match="format 'llm-mlx-promptcache/4'"):
        read_span(path)
    store = DiskStore(tmp_path)
    assert fetched(store, ids, "state") == 0
    store.tend()
    assert files_of(tmp_path) == []
    assert conversation(tmp_path, "state", 3) == ids
    assert fetched(DiskStore(tmp_path), ids, "state") == len(ids)
    assert DiskStore(tmp_path).check() == []


def test_an_index_of_files_of_format_4_is_made_anew_without_them(tmp_path):
    """As a folder of a version before this one is found."""
    conversation(tmp_path, "state", 3)
    for path in files_of(tmp_path):
        old_file(path)
    with sqlite3.connect(tmp_path / "index.sqlite") as index:
        index.execute("PRAGMA user_version = 5")
    index.close()
    store = DiskStore(tmp_path)
    said, *left = store.check()
    assert "is that of an older version" in said
    assert len(left) == 3
    assert all("has a file and no row" in one for one in left)
    store.sweep(every=True)
    assert store.check() == []
    assert files_of(tmp_path) == []


def test_a_file_of_unknown_layers_is_verified_with_its_ends(tmp_path, monkeypatch):
    ids = conversation(tmp_path, "state", 1)
    (path,) = files_of(tmp_path)

    def unknown(*_):
        raise UnknownKind("of a package that is not here")

    with monkeypatch.context() as patch:
        patch.setattr(span_file, "layout_from_metadata", unknown)
        (found,) = DiskStore(tmp_path).check()
        assert "can't be read just now: of a package that is not here" in found
        flip(path, without_ends(path) + 40)
        (found,) = DiskStore(tmp_path).check(fix=True)
        assert "not here; and" in found
        assert "states and windows do not match" in found
    assert path.exists()  # its rows are whole, for when its kinds are known
    assert fetched(DiskStore(tmp_path), ids, "state") == 0


class Sums(State):
    """A plugin's kind, whose way of joining is its own."""

    def join(self, views, count, headroom):
        return None


@pytest.mark.parametrize(
    ("kind", "start", "end", "span_end", "needed"),
    [
        (State(1), 80, 100, 100, True),
        (State(1), 60, 80, 80, False),
        (State(1), 80, 100, 110, False),  # the path leaves the span before its end
        (State(1), 80, 110, 110, False),  # and so does where it resumes
        (Window(30), 70, 71, 71, True),
        (Window(30), 60, 70, 70, False),
        (Window(30), 90, 110, 110, True),
        (ListOf((KVRows(), State(1))), 60, 80, 80, False),
        (ListOf((KVRows(), Window(30))), 70, 80, 80, True),
        (KVRows(), 80, 100, 100, False),
        (Sums(1), 0, 10, 10, True),
    ],
)
def test_who_needs_ends(kind, start, end, span_end, needed):
    assert needs_ends((KVRows(), kind), PathPart(start, end, span_end, []), 100) is needed


def test_restores_are_timed_by_what_they_read(tmp_path, read):
    ids = conversation(tmp_path, "state", 6)
    cache, told = PromptCache("1GB", DiskStore(tmp_path)), []
    cache._lookup.bandwidth.measured = lambda nbytes, seconds: told.append(nbytes)
    read.clear()
    assert cache.fetch("m", [*ids, 5]).cached == len(ids)
    assert told == [sum(read)]


def test_a_checkpoint_inside_a_span_is_its_own_and_the_spans_states_are_left(tmp_path, read):
    """A branch in the middle of rows: the state there is a checkpoint's."""
    ids = ids_of(4)
    layers = play([KVCache(), ArraysCache(2)], ids)
    store = DiskStore(tmp_path)
    cache = PromptCache("1GB", store)
    cache.insert("m", ids, layers)
    cache.flush()
    (path,) = files_of(tmp_path)
    cache.insert("m", ids[:50], play([KVCache(), ArraysCache(2)], ids[:50]))
    cache.flush()
    assert len(files_of(tmp_path)) == 2
    flip(path, without_ends(path) + 40)
    read.clear()
    lease = PromptCache("1GB", DiskStore(tmp_path)).fetch("m", [*ids[:50], 96])
    assert lease.cached == 50
    assert same(lease.layers, play([KVCache(), ArraysCache(2)], ids[:50]))
