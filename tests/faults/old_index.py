"""An index as versions before packs kept it: version 4, to the letter."""

import sqlite3

VERSION = 4
SCHEMA = """
CREATE TABLE namespaces (
    name TEXT PRIMARY KEY,
    layout TEXT NOT NULL,
    label TEXT NOT NULL,
    identity TEXT NOT NULL,
    digest BLOB NOT NULL
);
CREATE TABLE models (
    identity TEXT NOT NULL,
    label TEXT NOT NULL,
    opened INTEGER NOT NULL,
    came_back INTEGER NOT NULL,
    PRIMARY KEY (identity, label)
);
CREATE TABLE spans (
    file_id TEXT PRIMARY KEY,
    namespace TEXT NOT NULL,
    parent TEXT NOT NULL,
    start INTEGER NOT NULL,
    first INTEGER NOT NULL,
    tokens BLOB NOT NULL,
    count INTEGER NOT NULL,
    resumes INTEGER NOT NULL,
    tier INTEGER NOT NULL,
    density_bucket INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    digest BLOB NOT NULL,
    hits INTEGER NOT NULL DEFAULT 0,
    last_use INTEGER NOT NULL,
    used_at INTEGER NOT NULL,
    pinned INTEGER NOT NULL DEFAULT 0,
    children INTEGER NOT NULL DEFAULT 0,
    bucket INTEGER AS ((tier * 2 + (hits > 0)) * 65536 + density_bucket),
    UNIQUE (namespace, parent, start, first)
);
CREATE INDEX by_parent ON spans (parent, start);
CREATE INDEX by_worth ON spans (children, pinned, bucket, last_use, file_id);
CREATE INDEX by_age ON spans (namespace, children, used_at, pinned);
CREATE TABLE totals (
    spans INTEGER, tokens INTEGER, bytes INTEGER, tick INTEGER, swept INTEGER, proof INTEGER
);
INSERT INTO totals VALUES (0, 0, 0, 0, 0, 0);
CREATE TRIGGER added AFTER INSERT ON spans BEGIN
    UPDATE totals SET spans = spans + 1, tokens = tokens + NEW.count, bytes = bytes + NEW.bytes,
        proof = proof + 3 + 5 * NEW.count + 7 * NEW.bytes;
    UPDATE spans SET children = children + 1 WHERE file_id = NEW.parent;
END;
CREATE TRIGGER removed AFTER DELETE ON spans BEGIN
    UPDATE totals SET spans = spans - 1, tokens = tokens - OLD.count, bytes = bytes - OLD.bytes,
        proof = proof - 3 - 5 * OLD.count - 7 * OLD.bytes;
    UPDATE spans SET children = children - 1 WHERE file_id = OLD.parent;
END;
"""
_COLUMNS = (
    "file_id, namespace, parent, start, first, tokens, count, resumes, tier, density_bucket,"
    " bytes, digest, hits, last_use, used_at, pinned"
)


def put_in_place(folder):
    """Make a folder's index, which is today's and holds no packs, one of version 4."""
    index = folder / "index.sqlite"
    new = sqlite3.connect(index)
    assert new.execute("SELECT count(*) FROM packs").fetchone() == (0,)
    names = new.execute("SELECT * FROM namespaces").fetchall()
    rows = new.execute(f"SELECT {_COLUMNS} FROM spans ORDER BY rowid").fetchall()
    new.close()
    for ending in ("", "-wal", "-shm"):
        index.with_name(index.name + ending).unlink(missing_ok=True)
    old = sqlite3.connect(index)
    old.executescript(SCHEMA)
    old.executemany("INSERT INTO namespaces VALUES (?, ?, ?, ?, ?)", names)
    marks = ", ".join("?" * len(_COLUMNS.split(",")))
    old.executemany(f"INSERT INTO spans ({_COLUMNS}) VALUES ({marks})", rows)
    old.execute(f"PRAGMA user_version = {VERSION}")
    old.execute("PRAGMA journal_mode=WAL")
    old.commit()
    old.close()
    index.chmod(0o600)
