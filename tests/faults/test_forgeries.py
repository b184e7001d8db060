"""Files whose headers lie, by hand and by the thousand: a miss, never a crash (P2)."""

import itertools
import json
import os
import random
import time
from array import array

import mlx.core as mx
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from span_files import read_span
from worlds import file_of

from llm_mlx_promptcache.cache.disk.span_header import FORMAT
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.cache.span import DamagedSpan


def forged(header, body=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    return size.to_bytes(8, "little") + text + body


GOOD = {
    "format": FORMAT,
    "file_id": "forged",
    "label": "",
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
    "a billion arrays": forged(with_(layout='[[1, ["state", {"arity": 1000000000}]]]'), bytes(20)),
    "a list of lists": forged(
        with_(layout=f'[[1, {"[" * 20}["rows", {{}}]{"]" * 20}]]'), bytes(20)
    ),
    "a setting of another type": forged(
        with_(layout='[[1, ["window", {"size": [], "keep": {}}]]]'), bytes(20)
    ),
    "another name": forged(with_(file_id="0" * 32), bytes(20)),
    "an unknown kind": forged(with_(layout='[[1, ["os.system", {}]]]'), bytes(20)),
    "a layout that is none": forged(with_(layout="{}"), bytes(20)),
    "another format": forged(with_(format="llm-mlx-promptcache/2"), bytes(20)),
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


def fuzz(worlds, folder, ids, rounds, seed):
    """Lookups of files that are nearly spans; how many there were, and how many were refused."""
    print("seed", seed)
    rng, tried, refused = random.Random(seed), 0, 0
    store = DiskStore(folder, "20MB")
    worlds.put(store, ids)
    header, body = parted(file_of(store).read_bytes())
    for _ in rounds:
        path = file_of(store)
        path.write_bytes(mutated(header, body, rng))
        try:
            read_span(path)
        except DamagedSpan:
            refused += 1
        # What a digest says is whole may hold other rows (who writes it is trusted): it must not
        # raise, hang, or take more than the file's size.
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        with worlds.watched():
            PromptCache("1GB", store).fetch(worlds.NAMESPACE, [*ids, 5])
        assert mx.get_peak_memory() - before < 1 << 20
        tried += 1
        if not store.lookup(worlds.NAMESPACE, array("I", ids)).end:
            worlds.put(store, ids)
    store.clear()
    return tried, refused


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_p2_a_span_that_is_nearly_one_does_no_harm(worlds, tmp_path, ids):
    tried, refused = fuzz(worlds, tmp_path, ids, range(80), 1)
    assert refused > tried / 2


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_p2_fuzzing_for_long(worlds, tmp_path, ids):
    seconds = float(os.environ.get("FUZZ_SECONDS", "600"))
    ends = time.monotonic() + seconds
    rounds = itertools.takewhile(lambda _: time.monotonic() < ends, itertools.count())
    tried, refused = fuzz(worlds, tmp_path, ids, rounds, random.randrange(1 << 32))
    print("tried", tried, "refused", refused)
    assert refused > tried / 2 > 40
