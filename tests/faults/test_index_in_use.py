"""An index that can't be kept to, or not read, in use: nothing is kept too long or forgotten."""

import errno
import os
import sqlite3
from array import array

import pytest

from llm_mlx_promptcache.cache.disk import index as index_module
from llm_mlx_promptcache.cache.disk import index_log
from llm_mlx_promptcache.cache.disk.files import Files
from llm_mlx_promptcache.cache.disk.index import Index
from llm_mlx_promptcache.cache.disk.index_log import IndexLog
from llm_mlx_promptcache.cache.disk.store import DiskStore

NO_END = ["children = -1", "children = 5", "pinned = 2"]


def paths(count=6):
    return [list(range(at, at + 40)) for at in range(0, 100 * count, 100)]


def filled(worlds, folder):
    store = DiskStore(folder)
    store.label(worlds.NAMESPACE, "a/model")
    for path in paths():
        worlds.put(store, path)
    return store


def crafted(store, change):
    store.close()
    with sqlite3.connect(store.folder / "index.sqlite") as db:
        db.execute(f"UPDATE spans SET {change}")
    db.close()


@pytest.mark.parametrize("change", NO_END)
def test_p5_a_budget_is_kept_though_the_index_says_that_nothing_can_go(worlds, tmp_path, change):
    store = filled(worlds, tmp_path)
    crafted(store, change)
    smaller = DiskStore(tmp_path, worlds.on_disk(store) // 2)
    assert smaller.tend()
    assert worlds.on_disk(smaller) <= smaller.budget
    assert smaller.check() == []


@pytest.mark.parametrize("change", [*NO_END, "used_at = 1 << 62"])
def test_p8_a_model_is_cleared_though_the_index_says_that_nothing_can_go(worlds, tmp_path, change):
    store = filled(worlds, tmp_path)
    crafted(store, change)
    DiskStore(tmp_path).clear(model="a/model")
    assert worlds.on_disk(store) == 0


def test_p5_the_log_is_emptied_where_nothing_is_evicted(worlds, tmp_path, monkeypatch):
    monkeypatch.setattr(index_log, "_LONG", 100_000)
    store, log = DiskStore(tmp_path, "1GB"), tmp_path / "index.sqlite-wal"
    for at in range(30):
        worlds.put(store, list(range(at, at + 40)))
        assert log.stat().st_size < 200_000


class NoPins(Files):
    def open(self, path):
        if path.name == "pins.json":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().open(path)


@pytest.mark.parametrize("then", ["sweep", "pin"])
def test_p4_pins_that_can_not_be_read_when_an_index_is_made_are_pinned_later(
    worlds, tmp_path, then, caplog
):
    store, (first, second, *_) = filled(worlds, tmp_path), paths()
    assert store.pin(worlds.NAMESPACE, array("I", first), pinned=True)
    store.close()
    (tmp_path / "index.sqlite").unlink()
    blind = DiskStore(tmp_path, files=NoPins())
    assert any("pinned can't be read just now" in line for line in blind.check())
    blind.pin(worlds.NAMESPACE, array("I", second), pinned=True)
    assert caplog.records[-1].getMessage().startswith("what is pinned")
    blind.close()
    again = DiskStore(tmp_path)
    if then == "sweep":
        again.sweep()
    else:
        again.pin(worlds.NAMESPACE, array("I", second), pinned=True)
    pinned = {span.tokens[0] for span in again.listing().spans if span.pinned}
    assert pinned >= {first[0]}


def test_p4_an_index_that_is_replaced_while_it_is_opened_is_not_used(worlds, tmp_path, monkeypatch):
    store = filled(worlds, tmp_path)
    store.close()
    real = index_module.connect

    def replaced(path, wait):
        db = real(path, wait)
        path.replace(path.with_name("old"))
        path.with_name("new").touch(0o600)
        path.with_name("new").replace(path)
        return db

    monkeypatch.setattr(index_module, "connect", replaced)
    with pytest.raises(sqlite3.OperationalError, match="replaced"):
        Index(tmp_path / "index.sqlite")


def test_p4_a_new_index_gets_its_name_with_all_that_is_in_its_log(worlds, tmp_path, monkeypatch):
    store = filled(worlds, tmp_path)
    store.close()
    (tmp_path / "index.sqlite").unlink()
    monkeypatch.setattr(IndexLog, "empty", lambda log: "the disk is full")
    assert DiskStore(tmp_path).stats()["spans"] == 0
    assert not (tmp_path / "index.sqlite").exists()
    monkeypatch.undo()
    assert worlds.get(DiskStore(tmp_path), paths()[0]) == 40


def test_a_relative_folder_stays_where_it_was(worlds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = DiskStore("cache")
    worlds.put(store, paths()[0])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert worlds.get(store, paths()[0]) == 40
