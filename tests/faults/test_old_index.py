"""A folder of another version is read as it is; its index is made anew, and called no damage."""

from array import array

import old_index
from indexes import spans, sql
from worlds import PATHS

from llm_mlx_promptcache.cache.disk.store import DiskStore


def told(caplog):
    return [record.getMessage() for record in caplog.records]


def test_a_folder_of_version_4_is_read_and_called_old_once(worlds, folder, caplog):
    store = DiskStore(folder)
    path = worlds.paths(3, PATHS)[0]
    assert store.pin(worlds.NAMESPACE, array("I", path), pinned=True)
    store.close()
    files = spans(folder)
    old_index.put_in_place(folder)
    store = DiskStore(folder)
    (said,) = store.check()
    assert said.startswith("the index is that of an older version")
    assert store.check() == []
    assert [worlds.get(store, one) for one in worlds.paths(3, PATHS)] == [
        len(one) for one in worlds.paths(3, PATHS)
    ]
    assert spans(folder) == files
    assert sum(span.pinned for span in store.listing().spans) == 1
    (line,) = told(caplog)
    assert "is that of an older version of llm-mlx-promptcache (format 4)" in line
    assert line.endswith(f"and is made anew from {len(files)} files")
    assert "damaged" not in line


def test_a_folder_of_a_newer_version_is_called_newer(worlds, folder, caplog):
    sql(folder, "PRAGMA user_version = 7")
    store = DiskStore(folder)
    assert "is that of a newer version of llm-mlx-promptcache (format 7)" in store.check()[0]
    assert store.check() == []
    (line,) = told(caplog)
    assert "newer version" in line
    assert "damaged" not in line


def test_a_version_that_nobody_ever_gave_is_damage(folder, caplog):
    sql(folder, "PRAGMA user_version = 123456789")
    store = DiskStore(folder)
    assert "was damaged (it has version 123456789" in store.check()[0]
    (line,) = told(caplog)
    assert "was damaged" in line
