"""An index that is anything: found out, told in one line and made anew from the files (P2, P4)."""

import os
import random
import sqlite3
import threading
import time
from array import array

import pytest
from indexes import found_at_last, spans, sql, used
from worlds import PATHS

from llm_mlx_promptcache.cache.disk import index_rows, index_schema, repair, shared_index
from llm_mlx_promptcache.cache.disk.damage import DamagedIndex, is_damage
from llm_mlx_promptcache.cache.disk.index import Index
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.layers.layout_text import layout_from_text

ENDLESS = "WITH RECURSIVE a (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM a) SELECT"
CRAFTED = {
    "tokens of five bytes": ["UPDATE spans SET tokens = x'0102030405'"],
    "tokens as text": ["UPDATE spans SET tokens = 'words'"],
    "no tokens": ["UPDATE spans SET tokens = x''"],
    "other tokens": ["UPDATE spans SET tokens = randomblob(length(tokens))"],
    "a layout of millions": [
        """UPDATE namespaces SET layout = '[[3000000, ["rows", {}]]]'""",
    ],
    "a layout with a layer too many": ["""UPDATE namespaces SET layout = '[[3, ["rows", {}]]]'"""],
    "a layout without end": [
        "UPDATE namespaces SET layout = replace(hex(zeroblob(99999)), '0', '[')"
    ],
    "a layout that is none": ["UPDATE namespaces SET layout = '{'"],
    "a layout as a blob": ["UPDATE namespaces SET layout = x'00'"],
    "text that is no UTF-8": ["UPDATE namespaces SET label = CAST(x'ff41' AS TEXT)"],
    "names that are no UTF-8": ["UPDATE spans SET file_id = CAST(x'ff41' AS TEXT) || rowid"],
    "an empty name": ["UPDATE spans SET file_id = '' WHERE rowid = 1"],
    "a name of elsewhere": ["UPDATE spans SET file_id = '../../mine' WHERE rowid = 1"],
    "names of elsewhere that nothing hangs on": [
        "UPDATE spans SET file_id = '../../mine' WHERE rowid = (SELECT max(rowid) FROM spans)"
    ],
    "a span that hangs on itself": ["UPDATE spans SET parent = file_id"],
    "two that hang on each other": [
        "UPDATE spans SET parent = (SELECT max(file_id) FROM spans) WHERE rowid = 1",
        "UPDATE spans SET parent = (SELECT file_id FROM spans WHERE rowid = 1) WHERE file_id ="
        " (SELECT max(file_id) FROM spans)",
    ],
    "a start beyond": ["UPDATE spans SET start = 1 << 62"],
    "sizes as text": ["UPDATE spans SET bytes = 'many'"],
    "tiers that overflow": ["UPDATE spans SET tier = 9223372036854775807"],
    "half a tier": ["UPDATE spans SET tier = 0.5"],
    "uses as a blob": ["UPDATE spans SET last_use = x'00'"],
    "counters of petabytes": ["UPDATE totals SET bytes = 1000000000000000"],
    "counters that are text": ["UPDATE totals SET bytes = 'all'"],
    "two counters": ["INSERT INTO totals VALUES (0, 0, 0, 0, 0, 0, 0)"],
    "no counters": ["DELETE FROM totals"],
    "models as blobs": ["INSERT INTO models VALUES (x'00', x'00', x'00', x'00')"],
    "no table": ["DROP TABLE spans"],
    "no names": ["DROP TABLE namespaces"],
    "another version": ["PRAGMA user_version = 2"],
    "a later version": ["PRAGMA user_version = 99"],
    "an endless view for the spans": [
        "DROP TABLE spans",
        f"CREATE VIEW spans AS {ENDLESS} x FROM a",
    ],
    "an endless view for the counters": [
        "DROP TABLE totals",
        f"CREATE VIEW totals AS {ENDLESS} x AS spans, x AS tokens, x AS bytes, x AS dead,"
        " x AS tick, x AS swept, x AS proof FROM a",
    ],
    "a trigger that empties it": [
        "CREATE TRIGGER mine AFTER UPDATE ON totals BEGIN DELETE FROM spans; END"
    ],
    "a schema that is no SQL": [
        "UPDATE sqlite_master SET sql = 'CREATE TABLE spans (' WHERE name = 'spans'"
    ],
    "a table whose name is no UTF-8": [
        "UPDATE sqlite_master SET sql = 'CREATE TABLE ' || CAST(x'b1f4a0' AS TEXT) || '(,'"
        " WHERE name = 'spans'"
    ],
    "another index": ["DROP INDEX by_parent"],
    "statistics": ["ANALYZE"],
}


@pytest.mark.parametrize("what", CRAFTED)
def test_p2_a_crafted_index_is_made_anew_from_the_files(worlds, folder, what, tmp_path):
    mine = tmp_path / "mine.safetensors"
    mine.write_text("weights")
    before = spans(folder)
    sql(folder, *CRAFTED[what])
    began = time.process_time()
    said, found = used(worlds, folder)
    assert time.process_time() - began < 5  # a busy machine is no hang
    assert said, "check did not say so"
    assert found == PATHS
    assert mine.read_text() == "weights"
    assert set(before) <= set(spans(folder))


@pytest.mark.parametrize("what", CRAFTED)
def test_p2_an_index_that_is_crafted_while_it_is_open_raises_nothing(worlds, folder, what, caplog):
    store = DiskStore(folder)
    paths = worlds.paths(3, PATHS)
    assert worlds.get(store, paths[0]) == len(paths[0])
    before = spans(folder)
    sql(folder, *CRAFTED[what])
    for path in paths:
        worlds.get(store, path)
    worlds.put(store, [7, *range(2000, 2030)])
    store.listing(), store.by_model(), store.stats()
    assert not store._index.off
    assert set(before) <= set(spans(folder))
    assert sum("made anew" in record.getMessage() for record in caplog.records) <= 1
    store.check(fix=True)
    assert store.check() == []
    assert sum(worlds.get(store, path) == len(path) for path in paths) == PATHS


def test_p2_what_sqlite_quotes_of_a_damaged_schema_may_be_no_text(worlds, folder):
    """Its message holds the schema's bytes, and Python's module can't read it then."""
    index = folder / "index.sqlite"
    content = index.read_bytes()
    start = content.index(b"CREATE INDEX by_worth")
    column = content.index(b"last_use", start)
    index.write_bytes(content[:column] + b"las\xf0_use" + content[column + 8 :])
    said, found = used(worlds, folder)
    assert said
    assert found == PATHS


def flipped(content, rng):
    """An index with a bit, a page or a part of another one."""
    made = bytearray(content)
    what = rng.randrange(5)
    if what < 3:
        at = rng.randrange(100) if what == 0 else rng.randrange(len(made))
        made[at] ^= 1 << rng.randrange(8)
    elif what == 3:
        page = 4096 * rng.randrange(len(made) // 4096)
        source = 4096 * rng.randrange(len(made) // 4096)
        made[page : page + 4096] = rng.choice(
            [bytes(4096), rng.randbytes(4096), made[source : source + 4096]]
        )
    else:
        del made[rng.randrange(len(made)) :]
    return bytes(made)


def fuzz(worlds, folder, seconds, rounds, seed):
    """Indexes that are nearly ones; how many were tried."""
    print("seed", seed)
    rng, end, tried = random.Random(seed), time.monotonic() + seconds, 0
    whole = (folder / "index.sqlite").read_bytes()
    kept = {name: (folder / "spans" / name).read_bytes() for name in spans(folder)}
    while tried < rounds and time.monotonic() < end:
        for path in (folder / "spans").iterdir():
            if path.name not in kept:
                path.unlink()
        for ending in ("", "-wal", "-shm"):
            (folder / f"index.sqlite{ending}").unlink(missing_ok=True)
        name = rng.choice(["index.sqlite"] * 4 + ["index.sqlite-wal", "index.sqlite-shm"])
        (folder / "index.sqlite").write_bytes(whole)
        content = flipped(whole, rng) if name == "index.sqlite" else rng.randbytes(40_000)
        (folder / name).write_bytes(content)
        began = time.process_time()
        used(worlds, folder)
        assert time.process_time() - began < 10
        assert set(kept) <= set(spans(folder)), "a good span is gone"
        tried += 1
    return tried


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_p2_an_index_that_is_nearly_one_does_no_harm(worlds, folder):
    assert fuzz(worlds, folder, 60, 40, 1) >= 10


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_p2_fuzzing_the_index_for_long(worlds, folder, soak_share):
    seconds = soak_share * float(os.environ.get("FUZZ_SECONDS", "600"))
    tried = fuzz(worlds, folder, seconds, 1 << 30, random.randrange(1 << 32))
    print("tried", tried)
    assert tried > seconds / 10


LONG = "WITH RECURSIVE a (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM a LIMIT 20000000) SELECT"


@pytest.mark.parametrize(
    "statement",
    [
        f"{LONG} max(x) FROM a",
        f"UPDATE totals SET tick = ({LONG} max(x) FROM a)",
        "WITH RECURSIVE b (s, n) AS (SELECT file_id, 0 FROM spans WHERE parent = file_id UNION ALL"
        " SELECT s.file_id, n + 1 FROM spans AS s JOIN b ON s.parent = b.s LIMIT 20000000)"
        " SELECT max(n) FROM b",
    ],
)
def test_p2_a_statement_that_works_on_and_on_is_damage(folder, statement):
    """The last one goes round a span that hangs on itself. All of them would end, in seconds."""
    sql(folder, "UPDATE spans SET parent = file_id WHERE rowid = 1")
    index = Index(folder / "index.sqlite")
    try:
        with pytest.raises(sqlite3.OperationalError, match="interrupted") as raised:
            index.db.execute(statement).fetchall()
        assert is_damage(raised.value, index.path)
        with pytest.raises(sqlite3.OperationalError, match="interrupted"):
            index.db.executemany(f"UPDATE totals SET tick = ({LONG} max(x) + ? FROM a)", [(1,)])
        assert index.totals().spans  # the next one has its own bound
    finally:
        index.close()


def test_p2_a_schema_without_end_is_not_parsed(folder):
    """Parsing is no work that SQLite counts: 100,000 views held a lookup up for a minute."""
    sql(folder, *(f"CREATE VIEW v{number} AS SELECT 1" for number in range(300)))
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        index_schema.connect(folder / "index.sqlite", 0)


def test_law_7_a_lookup_that_finds_a_damaged_index_hardly_waits(worlds, folder, monkeypatch):
    """The waits that it asks for are counted, all of them together; the rest is done behind it."""
    go, asked, path = threading.Event(), [], worlds.paths(3, PATHS)[0]
    build, join = repair._build, threading.Thread.join

    def held_up(*parts):
        assert go.wait(60)
        return build(*parts)

    def counted(thread, timeout=None):
        asked.append(timeout)
        join(thread, timeout)

    monkeypatch.setattr(repair, "_build", held_up)
    sql(folder, "UPDATE spans SET tokens = x'00'")
    store = DiskStore(folder)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(repair.Mending, "join", counted)
            assert worlds.get(store, path) == 0
        assert asked
        assert None not in asked
        assert sum(asked) <= 2 * shared_index.LOOK_SECONDS <= 0.05
    finally:
        go.set()
    assert found_at_last(worlds, store, array("I", path)) == len(path)
    assert worlds.get(store, path) == len(path)


def test_pins_outlive_the_index_and_a_list_that_is_damaged_is_written_anew(worlds, folder):
    store, pinned = DiskStore(folder), array("I", worlds.paths(3, PATHS)[0])
    assert store.pin(worlds.NAMESPACE, pinned, pinned=True)
    held = [span.file_id for span in store.listing().spans if span.pinned]
    store.close()
    (folder / "index.sqlite").write_bytes(b"rubbish")
    again = DiskStore(folder)
    assert found_at_last(worlds, again, pinned) == len(pinned)
    assert [span.file_id for span in again.listing().spans if span.pinned] == held
    (folder / "pins.json").write_text(
        (folder / "pins.json").read_text().replace(held[0][:4], "0000")
    )
    assert any("pinned" in line for line in again.check(fix=True))
    assert again.check() == []
    assert again._pins.read() == set(held)
    again.clear()
    assert again._pins.read() is None


def test_labels_outlive_the_index(worlds, tmp_path, ids):
    store = DiskStore(tmp_path)
    store.label(worlds.NAMESPACE, "a/model")
    worlds.put(store, ids)
    store.close()
    (tmp_path / "index.sqlite").unlink()
    assert [model for model, _, _ in DiskStore(tmp_path).by_model()] == ["a/model"]


def test_law_7_nobody_waits_while_an_index_is_made_from_many_files(
    worlds, folder, monkeypatch, caplog
):
    """The folder's lock is another process's: this one has misses, and then what that one made."""
    (folder / "index.sqlite").unlink()
    store, path = DiskStore(folder), array("I", worlds.paths(3, PATHS)[0])
    with repair.locked(folder) as alone:
        assert alone
        assert store.lookup(worlds.NAMESPACE, path).end == 0
        assert not store._index.off
    assert store.stats()["budget"] > 0
    DiskStore(folder).check()  # who asked for just this waits
    store._index._unseen.try_again()
    store._index._locked.try_again()
    store.check()
    assert store.lookup(worlds.NAMESPACE, path).end == len(path)


def test_law_7_an_index_that_is_damaged_again_and_again_is_one_warning(worlds, folder, caplog):
    store, path = DiskStore(folder), array("I", worlds.paths(3, PATHS)[0])
    for _ in range(shared_index._MENDS):
        sql(folder, "UPDATE spans SET tokens = x'00'")
        assert found_at_last(worlds, store, path) == len(path)
    for _ in range(3):
        sql(folder, "UPDATE spans SET tokens = x'00'")
        assert store.lookup(worlds.NAMESPACE, path).end == 0
    told = [record.getMessage() for record in caplog.records]
    assert sum("made anew" in line for line in told) == shared_index._MENDS
    assert sum("again and again" in line for line in told) == 1


def test_a_row_that_is_as_written_comes_back_and_no_other():
    row = index_rows.SpanRow("ab" * 16, "m", "", 0, array("I", [1, 2]), True, 1, 99)
    values = [*row[:4], row.tokens.tobytes(), 1, 1, 99, "", index_rows.digest_of(row)]
    assert index_rows.row_from(values) == row
    others = [b"x", "cd" * 16, -1, 0.5, None, 1 << 62, "", b"\0" * 8]
    for at in range(len(values)):
        for other in [other for other in others if other != values[at]]:
            with pytest.raises(DamagedIndex):
                index_rows.row_from([*values[:at], other, *values[at + 1 :]])


@pytest.mark.parametrize(
    "text",
    [
        '[[3000000, ["rows", {}]]]',
        '[[1, ["state", {"arity": 2147483648}]]]',
        '[[1, ["state", {"arity": true}]]]',
        '[[1, ["window", {"size": "8", "keep": 0}]]]',
        '[[1, ["window", {"size": [8], "keep": 0}]]]',
        '[[1, ["rows", {"name": "x"}]]]',
        '[[1, ["rows"]]]',
        "[]",
        "{}",
        "[" * 200_000,
        "9" * 5_000,
        "NaN",
        "[[1, " + '["list", [' * 20 + '["rows", {}]' + "]]" * 20 + "]]",
    ],
)
def test_p2_a_layout_that_is_none_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"\w"):
        layout_from_text(text)
