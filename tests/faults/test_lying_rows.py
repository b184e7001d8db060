"""Rows that lie and bear a valid digest of ours: a whole file's own head decides (P1, P2, P4)."""

import json
import shutil
import sqlite3
from array import array

import pytest
from worlds import PATHS

from llm_mlx_promptcache.cache.disk.index_rows import (
    Namespace,
    SpanRow,
    digest_of,
    digest_of_namespace,
    first_of,
)
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.cache.worth import density

MORE = list(range(3000, 3040))
NOBODY = "ab" * 16


@pytest.fixture(scope="module")
def pinned_store(worlds, kept_store, tmp_path_factory):
    """A store of some paths, one of them pinned, to be copied."""
    made = shutil.copytree(kept_store, tmp_path_factory.mktemp("pinned") / "cache")
    store = DiskStore(made)
    store.pin(worlds.NAMESPACE, array("I", worlds.paths(3, PATHS)[1]), pinned=True)
    store._index.run(lambda index: index.log.shrink(), None)
    store.close()
    return made


@pytest.fixture
def folder(pinned_store, tmp_path):
    """A copy of it; nobody has it open."""
    return shutil.copytree(pinned_store, tmp_path / "cache")


def files(folder):
    return {p.name: p.read_bytes() for p in (folder / "spans").glob("*.safetensors")}


def sign(folder, change, *statements):
    """Have `change` rewrite the rows, give each its digest, its counts and the totals, and more."""
    db = sqlite3.connect(folder / "index.sqlite", isolation_level=None)
    db.row_factory = sqlite3.Row
    held = [dict(values) for values in db.execute("SELECT * FROM spans ORDER BY rowid")]
    for row in held:
        row["tokens"] = array("I", row["tokens"])
        del row["bucket"]  # SQLite computes it
    db.execute("DELETE FROM spans")
    for row in change(held) or held:
        fields = {name: row[name] for name in SpanRow._fields}
        made = SpanRow(**fields | {"resumes": bool(row["resumes"])})
        count = len(made.tokens)
        row |= {
            "tokens": made.tokens.tobytes(),
            "count": count,
            "digest": digest_of(made),
            "first": first_of(made),
            "density_bucket": density(count, made.bytes),
        }
        names = ", ".join(row)
        places = ", ".join(f":{name}" for name in row)
        db.execute(f"INSERT OR IGNORE INTO spans ({names}) VALUES ({places})", row)
    db.execute(
        "UPDATE spans AS s SET children = (SELECT count(*) FROM spans WHERE parent = s.file_id)"
    )
    db.execute(
        "UPDATE totals SET (spans, tokens, bytes) = (SELECT count(*), sum(count), sum(bytes)"
        " FROM spans)"
    )
    for statement in statements:
        db.execute(statement)
    db.execute("UPDATE totals SET proof = spans * 3 + tokens * 5 + bytes * 7")
    db.close()


def column(name, value, which=(-1,)):
    """A change of a column of some rows; `value` may be a function of the row and all of them."""

    def change(rows):
        for at in which:
            rows[at][name] = value(rows[at], rows) if callable(value) else value

    return change


def every(name, value):
    return lambda rows: column(name, value, range(len(rows)))(rows)


def swap(name):
    def change(rows):
        rows[0][name], rows[-1][name] = rows[-1][name], rows[0][name]

    return change


def ring(rows):
    rows[0]["parent"], rows[-1]["parent"] = rows[-1]["file_id"], rows[0]["file_id"]


def twice(rows):
    return rows + [row | {"file_id": f"{n:032x}", "parent": NOBODY} for n, row in enumerate(rows)]


def instead(rows):
    return [row | {"file_id": f"{n:032x}"} for n, row in enumerate(rows)]


def as_checkpoints(rows):
    return rows + [
        rows[0]
        | {"file_id": f"{n:032x}", "parent": rows[0]["file_id"], "start": n, "tokens": array("I")}
        for n in range(1, len(rows[0]["tokens"]) + 1)
    ]


def longer(row, _):
    return row["tokens"] + array("I", MORE)


LIES = {
    "another model's": column("namespace", "other"),
    "all another model's": every("namespace", "other"),
    "another parent": column("parent", lambda _, rows: rows[1]["file_id"]),
    "all on the first": every("parent", lambda row, rows: rows[0]["file_id"]),
    "all on nobody": every("parent", NOBODY),
    "on nobody": column("parent", NOBODY),
    "at the start": column("parent", ""),
    "on itself": column("parent", lambda row, _: row["file_id"]),
    "all on themselves": every("parent", lambda row, _: row["file_id"]),
    "on each other": ring,
    "starts later": column("start", lambda row, _: row["start"] + 1),
    "starts at once": column("start", 0),
    "all start elsewhere": every("start", 7),
    "starts beyond": column("start", 1 << 61),
    "other tokens": column("tokens", lambda row, _: array("I", reversed(row["tokens"]))),
    "more tokens": every("tokens", longer),
    "more tokens at the first": column("tokens", longer, (0,)),
    "fewer tokens": every("tokens", lambda row, _: row["tokens"][:1]),
    "no tokens": column("tokens", array("I")),
    "swapped tokens": swap("tokens"),
    "a tier beyond": every("tier", 5000),
    "a tier far beyond": every("tier", 1 << 61),
    "many bytes": every("bytes", 1 << 50),
    "few bytes": every("bytes", 1),
    "resumes not": every("resumes", 0),
    "swapped files": swap("file_id"),
    "nobody's file": column("file_id", NOBODY),
    "nobody's files": instead,
    "each twice": twice,
    "checkpoints everywhere": as_checkpoints,
    "no rows": lambda rows: [{**rows[0], "parent": rows[0]["file_id"]}],
}
COUNTED = {
    "other first tokens": "UPDATE spans SET first = 999",
    "first tokens of checkpoints": "UPDATE spans SET first = -1 WHERE file_id ="
    " (SELECT max(file_id) FROM spans)",
    "many hits": "UPDATE spans SET hits = 1 << 62",
    "used later": "UPDATE spans SET last_use = 1 << 62",
    "used by nobody": "UPDATE spans SET used_at = 0, last_use = 0",
    "all pinned": "UPDATE spans SET pinned = 1",
    "pinned sevenfold": "UPDATE spans SET pinned = 7",
    "nothing pinned": "UPDATE spans SET pinned = 0",
    "no children": "UPDATE spans SET children = 0",
    "children of leaves": "UPDATE spans SET children = children + 1",
    "a density beyond": "UPDATE spans SET density_bucket = 1 << 40",
    "counters beyond": "UPDATE totals SET bytes = 1 << 50",
    "no counters": "UPDATE totals SET bytes = 0, spans = 0, tokens = 0",
    "a tick at the end": "UPDATE totals SET tick = (1 << 62) + ((1 << 62) - 1)",
}
TRIES = {name: (change, ()) for name, change in LIES.items()} | {
    name: (lambda rows: None, (statement,)) for name, statement in COUNTED.items()
}


def layout_told(folder, layout):
    """Say of a model, with a digest, that it has other layers."""
    db = sqlite3.connect(folder / "index.sqlite", isolation_level=None)
    for name, label, identity in db.execute("SELECT name, label, identity FROM namespaces"):
        told = Namespace(name, json.dumps(layout), label, identity)
        change = "UPDATE namespaces SET layout = ?, digest = ? WHERE name = ?"
        db.execute(change, (told.layout, digest_of_namespace(told), name))
    db.close()


def lived_with(worlds, store):
    """Do all that is done with a store, in one life; every result is right, or `get` raises."""
    paths = worlds.paths(3, PATHS)
    for path in paths:
        worlds.get(store, path)
    store.listing(), store.by_model(), store.superseded(), store.stats(), store.sweep()
    for path in (*paths, MORE):
        worlds.put(store, [*path, *MORE])
        cache = PromptCache("1GB", store)
        cache.insert(worlds.NAMESPACE, path, worlds.layers_for(path))
        cache.pin(worlds.NAMESPACE, path)
        cache.unpin(worlds.NAMESPACE, path)
    store.tend()
    for path in paths:
        worlds.get(store, path)
    store.tend()


def mended(worlds, store, *others):
    """It is whole: all that was stored and is stored is found, and `check` has nothing to say."""
    store.check(fix=True)
    assert store.check() == []
    for path in (*worlds.paths(3, PATHS), *others):
        assert worlds.get(store, path) == len(path)
        worlds.put(store, [*path, *MORE])
        assert worlds.get(store, [*path, *MORE]) == len(path) + len(MORE)
    assert not store._index.off


# Each lie is told to a store that is open or to one that is not, and in the soak to both.
TOLD = [
    pytest.param(lie, open_before, marks=[pytest.mark.soak] * (at % 2 != open_before))
    for at, lie in enumerate(TRIES)
    for open_before in (False, True)
]


@pytest.mark.parametrize(("lie", "open_before"), TOLD)
def test_p2_a_row_that_lies_harms_nobody(worlds, folder, lie, open_before, caplog):
    store, before = DiskStore(folder, "1GB"), files(folder)
    if open_before:
        assert worlds.get(store, worlds.paths(3, PATHS)[0])
    change, statements = TRIES[lie]
    sign(folder, change, *statements)
    lived_with(worlds, store)
    assert before.items() <= files(folder).items()
    # What was not found may have been stored again: then one of the two goes.
    mended(worlds, store, MORE)
    told = [record.getMessage() for record in caplog.records]
    assert [line for line in told if "made anew" not in line] == []


@pytest.mark.parametrize("lie", TRIES)
def test_p2_check_finds_and_mends_a_row_that_lies(worlds, folder, lie):
    before = files(folder)
    change, statements = TRIES[lie]
    sign(folder, change, *statements)
    store = DiskStore(folder, "1GB")
    assert store.check(fix=True) or lie == "used by nobody"  # who used what is nowhere else
    assert files(folder) == before
    mended(worlds, store)


LAYOUTS = [[[3, ["rows", {}]]], [[2, ["window", {"size": 8, "keep": 0}]]], [[2, ["none", {}]]]]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("look", [False, True])
def test_p2_a_layout_that_lies_refuses_no_save(worlds, folder, layout, look):
    before = files(folder)
    layout_told(folder, layout)
    store = DiskStore(folder, "1GB")
    path = [*worlds.paths(3, PATHS)[0], *MORE]
    if look:
        assert worlds.get(store, path) == 0
    cache = PromptCache("1GB", store)
    cache.fetch(worlds.NAMESPACE, path)
    cache.insert(worlds.NAMESPACE, path, worlds.layers_for(path))
    cache.flush()
    assert before.items() <= files(folder).items()
    worlds.put(store, path)
    assert worlds.get(store, path) == len(path)
    assert store.check() == []


@pytest.mark.parametrize("lie", ["more tokens", "more tokens at the first", "swapped files"])
def test_p2_saves_go_on_after_a_lie_without_anybodys_check(worlds, folder, lie):
    sign(folder, LIES[lie])
    store = DiskStore(folder, "1GB")
    for path in worlds.paths(3, PATHS):
        for _ in range(3):
            worlds.get(store, [*path, *MORE])
            store.tend()
            worlds.put(store, [*path, *MORE])
        assert worlds.get(store, [*path, *MORE]) == len(path) + len(MORE)


COUNTING = ["many bytes", "counters beyond", "all pinned", "pinned sevenfold", "children of leaves"]


@pytest.mark.parametrize("lie", COUNTING)
def test_p4_what_is_not_there_evicts_nothing(worlds, folder, lie):
    before = files(folder)
    change, statements = TRIES[lie]
    sign(folder, change, *statements)
    store = DiskStore(folder, "1MB")
    assert store.tend()
    worlds.put(store, MORE)
    assert before.items() <= files(folder).items()


@pytest.mark.parametrize("lie", [*TRIES])
def test_p4_a_budget_is_kept_whatever_rows_say_and_pins_stay(worlds, folder, lie):
    pinned = worlds.paths(3, PATHS)[1]
    change, statements = TRIES[lie]
    sign(folder, change, *statements)
    most = 2 * sum(len(content) for content in files(folder).values()) // 3
    store = DiskStore(folder, most)
    for _ in range(8):
        store.tend()
    store.check(fix=True)
    store.tend()
    assert sum(len(content) for content in files(folder).values()) <= most
    assert store.check() == []
    assert worlds.get(store, pinned) == len(pinned)


@pytest.mark.parametrize("damage", [False, True])
def test_p4_what_is_said_to_hang_on_a_damaged_span_is_asked_first(worlds, folder, damage):
    """A span that truly hangs there is removed with it, and nothing else is."""
    paths = worlds.paths(3, PATHS)
    stranger = [4, *MORE]
    store = DiskStore(folder, "1GB")
    worlds.put(store, stranger)
    (root,) = store.lookup(worlds.NAMESPACE, array("I", stranger)).spans
    victim = store.lookup(worlds.NAMESPACE, array("I", paths[0])).spans[0].file_id
    store.close()
    sign(folder, column("parent", victim))
    if damage:
        path = folder / "spans" / f"{victim}.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    else:
        (folder / "spans" / f"{victim}.safetensors").unlink()
    store = DiskStore(folder, "1GB")
    for path in paths:
        worlds.get(store, path)
        store.tend()
    assert root.file_id + ".safetensors" in files(folder)
    store.check(fix=True)
    assert worlds.get(store, stranger) == len(stranger)
    assert not any(name.startswith(victim) for name in files(folder))


def test_law_1_a_span_that_is_said_to_hang_elsewhere_is_a_miss(worlds, tmp_path):
    """Its rows were computed after another beginning, of the same length and other tokens."""
    store, ends = DiskStore(tmp_path), list(range(500, 540))
    one, other = [[n, *range(9, 40)] for n in (1, 2)]
    for path in (one, other):
        worlds.put(store, path)
    worlds.put(store, [*one, *ends])
    store.close()

    def change(rows):
        (start,) = [row["file_id"] for row in rows if list(row["tokens"][:1]) == [2]]
        rows[-1]["parent"] = start

    sign(tmp_path, change)
    store = DiskStore(tmp_path)
    for _ in range(2):
        assert worlds.get(store, [*other, *ends]) == len(other)
        store.tend()
    assert worlds.get(store, [*one, *ends]) == len(one) + len(ends)


def test_p2_a_model_is_cleared_and_no_other(worlds, folder):
    before = files(folder)
    store = DiskStore(folder)
    store.close()
    sign(folder, every("namespace", "other model"))
    db = sqlite3.connect(folder / "index.sqlite", isolation_level=None)
    (layout,) = db.execute("SELECT layout FROM namespaces").fetchone()
    told = Namespace("other model", layout, "", "")
    db.execute("INSERT INTO namespaces VALUES (?, ?, ?, ?, ?)", (*told, digest_of_namespace(told)))
    db.close()
    DiskStore(folder).clear(model="other model")
    store = DiskStore(folder)
    for path in worlds.paths(3, PATHS):
        worlds.get(store, path)
    store.tend()
    store.check(fix=True)
    assert files(folder) == before
