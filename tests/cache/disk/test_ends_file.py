"""A span's file with ends behind its rows: read without them, forged, of an older format."""

import json
import sqlite3
from array import array

import mlx.core as mx
import pytest
import safetensors
import xxhash
from paths_with_ends import conversation, fetched, files_of, flip, without_ends
from span_files import read_span, write_span

from llm_mlx_promptcache.cache.disk import span_file
from llm_mlx_promptcache.cache.disk.files import Files
from llm_mlx_promptcache.cache.disk.span_file import OpenSpan
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.layers.errors import UnknownKind
from llm_mlx_promptcache.cache.layers.kinds import KVRows, ListOf, State
from llm_mlx_promptcache.cache.span import DamagedSpan, Head

LAYOUT = (State(2), KVRows(), ListOf((KVRows(), State(1))), KVRows())


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
