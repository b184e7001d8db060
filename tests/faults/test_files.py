"""Files that are damaged, forged or not ours: a miss, never a crash, never a wrong byte (P2)."""

import json
import os
import random
import stat
import time
from array import array

import mlx.core as mx
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_mlx_promptcache.cache.disk import DiskStore
from llm_mlx_promptcache.cache.files import Files
from llm_mlx_promptcache.cache.layer_kinds import Rows
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.cache.span_file import (
    FORMAT,
    DamagedSpan,
    Head,
    host_tensors,
    read_span,
    write_span,
)


@pytest.fixture
def ids(worlds):
    return worlds.paths(1)[0]


@pytest.fixture
def store(worlds, tmp_path, ids):
    made = DiskStore(tmp_path / "cache", "20MB")
    worlds.put(made, ids)
    return made


def file_of(store):
    (path,) = store.spans_folder.glob("*.safetensors")
    return path


def missed(worlds, store, ids):
    """A lookup finds nothing, at once, and what was wrong is gone."""
    started = time.monotonic()
    assert worlds.get(store, ids) == 0
    assert time.monotonic() - started < 1
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
    layers = (Rows(),) * 8
    rows = [tuple(mx.random.normal((1, 8, 4096, 32)) for _ in range(2)) for _ in layers]
    head = Head("m", "", 0, "user", layers, array("I", range(4096)), True)
    stem, size = write_span(folder, head, host_tensors(rows), Files())
    assert size > 64 << 20
    path = folder / f"{stem}.safetensors"
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
    turn(file_of(store), tmp_path / "elsewhere")
    assert missed(worlds, store, ids)
    assert len(caplog.records) == 1
    assert not any(str(word) in caplog.text for word in ids[:3] if word > 99)


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


def forged(header, body=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    return size.to_bytes(8, "little") + text + body


GOOD = {
    "format": FORMAT,
    "namespace": "m",
    "parent": "",
    "start": "0",
    "tier": "user",
    "layout": '[[1, ["rows", {}]]]',
    "resumes": "1",
}
TOKENS = {"dtype": "U32", "shape": [1], "data_offsets": [0, 4]}
DIGEST = {"dtype": "U8", "shape": [16], "data_offsets": [4, 20]}


def with_(name=None, entry=None, **metadata):
    header = {"__metadata__": GOOD | metadata, "tokens": TOKENS, "digest": DIGEST}
    return header if name is None else {**header, name: entry}


FORGED = {
    "a length of 2^63": forged(b"{}", bytes(64), 1 << 63),
    "a length beyond the file": forged(b"{}", bytes(64), 1000),
    "no JSON": forged(b"\xff" * 64, bytes(64)),
    "deep JSON": forged(b"[" * 200_000, bytes(64)),
    "a list": forged([1], bytes(64)),
    "no metadata": forged({}, bytes(64)),
    "a billion layers": forged(with_(layout='[[1000000000, ["rows", {}]]]'), bytes(20)),
    "an unknown kind": forged(with_(layout='[[1, ["os.system", {}]]]'), bytes(20)),
    "a layout that is none": forged(with_(layout="{}"), bytes(20)),
    "another format": forged(with_(format="llm-mlx-promptcache/1"), bytes(20)),
    "a start that is none": forged(with_(start="NaN"), bytes(20)),
    "a huge shape": forged(
        with_("layer.0.0", {"dtype": "F32", "shape": [1 << 40], "data_offsets": [4, 4]}), bytes(20)
    ),
    "a negative shape": forged(
        with_("layer.0.0", {"dtype": "F32", "shape": [-1, -4], "data_offsets": [4, 20]}), bytes(32)
    ),
    "an overlap": forged(
        with_("layer.0.0", {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}), bytes(20)
    ),
    "a hole": forged(
        with_("layer.0.0", {"dtype": "U8", "shape": [4], "data_offsets": [8, 12]}), bytes(32)
    ),
    "NaN for a shape": forged(json.dumps(with_()).replace("[16]", "[NaN]").encode(), bytes(20)),
    "a float for an offset": forged(
        json.dumps(with_()).replace("[4, 20]", "[4.0, 20.0]").encode(), bytes(20)
    ),
    "a stranger's tensor": forged(
        with_("weights", {"dtype": "U8", "shape": [0], "data_offsets": [4, 4]}), bytes(20)
    ),
}


@pytest.mark.parametrize("what", FORGED)
def test_p2_a_forged_header_is_refused(tmp_path, what):
    path = tmp_path / "forged.safetensors"
    path.write_bytes(FORGED[what])
    path.chmod(0o600)
    with pytest.raises(DamagedSpan):
        read_span(path)


def test_p2_forged_headers_cost_no_memory(worlds, finished, tmp_path, ids):
    # Each in the place of a span that the index knows, found by a process that may not grow.
    for number, content in enumerate(FORGED.values()):
        store = DiskStore(tmp_path / str(number), "20MB")
        worlds.put(store, ids)
        file_of(store).write_bytes(content)
        store.close()
    out, error = finished("fetch_each", tmp_path, 1)
    assert out == str([0] * len(FORGED))
    assert error.count("a stored span is left out") == len(FORGED)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_p2_no_content_raises_anything_but_damage(tmp_path, data):
    raw = data.draw(st.binary(max_size=300))
    shape = st.lists(st.integers(-2, 1 << 62) | st.floats(), max_size=3)
    entry = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "U32", "BOOL", "X", ""]),
            "shape": shape,
            "data_offsets": st.lists(st.integers(-2, 1 << 62), max_size=3),
        }
    )
    names = st.sampled_from(["tokens", "digest", "layer.0.0", "layer.0.1", "x"])
    header = data.draw(st.dictionaries(names, entry | st.none()))
    metadata = data.draw(st.dictionaries(st.sampled_from(sorted(GOOD)), st.text(max_size=9)))
    path = tmp_path / "any.safetensors"
    for content in (raw, forged({"__metadata__": GOOD | metadata, **header}, raw)):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(DamagedSpan):
            read_span(path)


def mutated(header, body, rng):
    """A file that is nearly a span: parts of its header are others, and its digest fits."""
    header = json.loads(json.dumps(header))
    for _ in range(rng.randrange(1, 4)):
        entry = header[rng.choice(sorted(header))]
        key = rng.choice(sorted(entry))
        entry[key] = rng.choice([*JUNK, changed(entry[key], rng), changed(entry[key], rng)])
    if rng.random() < 0.3:
        header[rng.choice(["layer.0.0", "x", "tokens", ""])] = header.pop(rng.choice(list(header)))
    text = json.dumps(header).encode()
    if rng.random() < 0.3:
        at = rng.randrange(len(text))
        text = text[:at] + bytes([rng.randrange(256)]) + text[at + rng.randrange(3) :]
    body = body[: rng.randrange(len(body))] if rng.random() < 0.2 else body
    length = len(text) if rng.random() < 0.9 else rng.choice([0, 1, 1 << 62, len(text) + 9])
    whole = length.to_bytes(8, "little") + text + body
    return whole + xxhash.xxh3_128(whole).digest()


JUNK = [
    None,
    -1,
    0,
    1 << 63,
    0.5,
    "",
    "F64",
    "rows",
    [],
    [0],
    [[]],
    {},
    {"dtype": []},
    True,
    "9" * 99,
]


def changed(value, rng):
    """A value of the same type that is nearly the same."""
    if isinstance(value, list) and value:
        at = rng.randrange(len(value))
        return [*value[:at], changed(value[at], rng), *value[at + 1 :]]
    if isinstance(value, int):
        return value + rng.choice([-1, 1, 4, 1 << 31])
    return value[: rng.randrange(len(value))] if isinstance(value, str) and value else value


def parted(content):
    """A span's file as its header, and its data without the digest."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length : -16]


def fuzz(worlds, folder, ids, seconds, seed):
    """Lookups of files that are nearly spans, for so long; how many, and how many were refused."""
    print("seed", seed)
    rng, end, tried, refused = random.Random(seed), time.monotonic() + seconds, 0, 0
    store = DiskStore(folder, "20MB")
    worlds.put(store, ids)
    header, body = parted(file_of(store).read_bytes())
    while time.monotonic() < end:
        path, began = file_of(store), time.process_time()
        path.write_bytes(mutated(header, body, rng))
        try:
            read_span(path)
        except DamagedSpan:
            refused += 1
        # What a digest says is whole may hold other rows (who writes it is trusted): it must not
        # raise, hang, or take more than the file's size.
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        PromptCache("1GB", store).fetch(worlds.NAMESPACE, [*ids, 5])
        assert mx.get_peak_memory() - before < 1 << 20
        assert time.process_time() - began < 1  # a busy machine is no hang
        tried += 1
        if not store.lookup(worlds.NAMESPACE, array("I", ids)).end:
            worlds.put(store, ids)
    store.clear()
    return tried, refused


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_p2_a_span_that_is_nearly_one_does_no_harm(worlds, tmp_path, ids):
    tried, refused = fuzz(worlds, tmp_path, ids, 5, 1)
    assert refused > tried / 2 > 25


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_p2_fuzzing_for_long(worlds, tmp_path, ids):
    seconds = float(os.environ.get("FUZZ_SECONDS", "600"))
    tried, refused = fuzz(worlds, tmp_path, ids, seconds, random.randrange(1 << 32))
    print("tried", tried, "refused", refused)
    assert refused > tried / 2 > seconds
