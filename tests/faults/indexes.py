"""An index that a test harms, and all that a store may be asked over it."""

import sqlite3

from worlds import PATHS

from llm_mlx_promptcache.cache.disk.store import DiskStore


def spans(folder):
    return sorted(p.name for p in (folder / "spans").glob("*.safetensors"))


def used(worlds, folder):
    """Look everything up and store something: nothing may raise, and the disk must be there then.

    Returns the findings of `check` before, and the number of tokens found afterwards.
    """
    store = DiskStore(folder)
    said = store.check()
    for path in worlds.paths(3, PATHS):
        worlds.get(store, path)  # the first may miss, and is never wrong
    store.listing(), store.by_model(), store.superseded(), store.stats()
    assert worlds.put(store, [7, *range(2000, 2030)]) == 1
    assert worlds.get(store, [7, *range(2000, 2030)]) == 31
    assert not store._index.off
    found = sum(worlds.get(store, path) == len(path) for path in worlds.paths(3, PATHS))
    store.check(fix=True)
    assert store.check() == []
    store.close()
    return said, found


def sql(folder, *statements):
    db = sqlite3.connect(folder / "index.sqlite", isolation_level=None)
    db.execute("PRAGMA writable_schema=ON")
    for statement in statements:
        db.execute(statement)
    db.close()


def found_at_last(worlds, store, path):
    """The tokens of a path that are found once the work a lookup did not wait for is done."""
    found = store.lookup(worlds.NAMESPACE, path).end
    if not found and store._index._mending is not None:
        store._index._mending.join()
        found = store.lookup(worlds.NAMESPACE, path).end
    return found
