"""A pack, or a row of one, that is not what it should be is a miss or right (P1, P2)."""

import json
import random
import sqlite3

import pytest
import xxhash
from packed_talks import names
from test_lying_rows import column, sign

from llm_mlx_promptcache.cache.disk.store import DiskStore


def test_p1_a_flipped_bit_anywhere_in_a_pack_is_a_miss(worlds, packed):
    folder, ids, _, path = packed
    content = path.read_bytes()
    for at in random.Random(4).sample(range(len(content)), 60):
        path.write_bytes(content[:at] + bytes([content[at] ^ 8]) + content[at + 1 :])
        assert worlds.get(DiskStore(folder), ids) == 0
    path.write_bytes(content[:-40])
    store = DiskStore(folder)
    assert worlds.get(store, ids) == 0
    assert any("can't be read" in line for line in DiskStore(folder).check())
    store.check(fix=True)
    assert store.check() == []
    assert names(folder) == []  # what hung on it is gone as well


def forged(content, change):
    """A pack with another header, and a digest that fits it."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header["__metadata__"]
    spans = json.loads(metadata["spans"])
    change(metadata, spans)
    metadata.setdefault("spans", json.dumps(spans))
    if metadata["spans"] != "as it is":
        metadata["spans"] = json.dumps(spans)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    made = len(text).to_bytes(8, "little") + text + content[8 + length : -16]
    return made + xxhash.xxh3_128_digest(made)


def at_first(index, value):
    def change(_, spans):
        spans[0][index] = value

    return change


FORGERIES = {
    "another format": lambda metadata, _: metadata.update(format="llm-mlx-promptcache/4"),
    "another name": lambda metadata, _: metadata.update(file_id="ab" * 16),
    "no spans": lambda _, spans: spans.clear(),
    "one span less": lambda _, spans: spans.pop(),
    "one twice": lambda _, spans: spans.__setitem__(1, spans[0]),
    "in another order": lambda _, spans: spans.reverse(),
    "a name that is none": at_first(0, "../../mine"),
    "a strangers name": at_first(0, "cd" * 16),
    "no length": at_first(1, 0),
    "a length below nothing": at_first(1, -5),
    "a length that is none": at_first(1, "12"),
    "a length beyond": at_first(1, 1 << 62),
    "other lengths": lambda _, spans: (spans[0].__setitem__(1, 11), spans[1].__setitem__(1, 13)),
    "no tier": at_first(2, None),
    "a tier of a megabyte": at_first(2, "x" * (1 << 20)),
    "resumes perhaps": at_first(3, "yes"),
    "too many fields": lambda _, spans: spans[0].append(1),
    "starts later": lambda metadata, _: metadata.update(start="3"),
    "another parent": lambda metadata, _: metadata.update(parent="ef" * 16),
    "another model": lambda metadata, _: metadata.update(namespace="other"),
    "spans that are numbers": lambda _, spans: spans.__setitem__(0, 7),
    "spans deep inside": lambda _, spans: spans.__setitem__(0, json.loads("[" * 500 + "]" * 500)),
}


@pytest.mark.parametrize("what", FORGERIES)
@pytest.mark.parametrize("lost", [False, True], ids=["index", "no index"])
def test_p2_a_forged_pack_is_a_miss_or_right(worlds, packed, what, lost):
    folder, ids, branch, path = packed
    path.write_bytes(forged(path.read_bytes(), FORGERIES[what]))
    if lost:
        (folder / "index.sqlite").unlink()
    store = DiskStore(folder, "20MB")
    for asked in (ids, branch, ids[:20]):
        worlds.get(store, asked)
    store.tend()
    worlds.compacted(store)
    worlds.put(store, [*ids, 1, 2, 3])
    assert worlds.get(store, [*ids, 1, 2, 3]) == len(ids) + 3
    store.check(fix=True)
    assert store.check() == []
    assert not store._index.off


LIES = {
    "in nobody's pack": (column("pack", "ab" * 16), ()),
    "all in nobody's pack": (lambda rows: [r | {"pack": "ab" * 16} for r in rows], ()),
    "in no pack": (column("pack", "", (0,)), ()),
    "all in no pack": (lambda rows: [r | {"pack": ""} for r in rows], ()),
    "one more in it": (column("pack", lambda row, rows: rows[0]["pack"]), ()),
    "in a pack of elsewhere": (column("pack", "../../mine"), ()),
    "other bytes": (column("bytes", 7, (0,)), ()),
    "a huge pack": (lambda rows: None, ("UPDATE packs SET bytes = 1 << 50",)),
    "an empty pack": (lambda rows: None, ("UPDATE packs SET live = 0, spans = 0",)),
    "no packs": (lambda rows: None, ("DELETE FROM packs",)),
    "another pack": (lambda rows: None, (f"INSERT INTO packs VALUES ('{'cd' * 16}', 999, 0, 0)",)),
    "a pack that is none": (lambda rows: None, ("INSERT INTO packs VALUES ('../x', 9, 0, 0)",)),
    "live beyond": (lambda rows: None, ("UPDATE packs SET live = bytes * 2",)),
    "much is dead": (lambda rows: None, ("UPDATE totals SET dead = 1 << 50",)),
    "less than nothing is dead": (lambda rows: None, ("UPDATE totals SET dead = -5",)),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("fix", [False, True], ids=["used", "checked"])
def test_p2_a_row_that_lies_of_packs_harms_nobody(worlds, packed, lie, fix):
    folder, ids, branch, path = packed
    change, statements = LIES[lie]
    sign(folder, change, *statements)
    db = sqlite3.connect(folder / "index.sqlite", isolation_level=None)
    db.execute("UPDATE totals SET proof = spans * 3 + tokens * 5 + bytes * 7 + dead * 11")
    db.close()
    store = DiskStore(folder, "20MB")
    if not fix:
        for asked in (ids, branch):
            worlds.get(store, asked)
        store.tend(), store.sweep(), store.stats(), store.listing(), store.tend()
        worlds.compacted(store)
        worlds.put(store, [*branch, 1, 2, 3])
        assert path.exists() or worlds.get(store, ids) == len(ids)
    store.check(fix=True)
    assert store.check() == []
    assert not store._index.off
    for asked in (ids, branch):
        assert worlds.get(store, asked) == len(asked)


@pytest.mark.parametrize("lie", ["in no pack", "all in no pack", "all in nobody's pack"])
def test_p2_a_sweep_believes_no_row_that_denies_its_pack(worlds, packed, lie):
    """Such rows seem to have lost their file, and nothing would be left of the pack."""
    folder, ids, branch, path = packed
    sign(folder, LIES[lie][0])
    store = DiskStore(folder, "20MB")
    store.sweep(every=True)
    assert path.exists()
    for asked in (ids, branch):
        assert worlds.get(store, asked) == len(asked)
