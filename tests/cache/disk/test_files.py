"""Files that must survive a power cut are on the disk itself, on macOS too."""

import fcntl
import os

import pytest

from llm_mlx_promptcache import config
from llm_mlx_promptcache.cache.disk.files import Files, to_disk
from llm_mlx_promptcache.cache.disk.index import Index

FULL = 51  # macOS's number


@pytest.fixture
def calls(monkeypatch):
    """The calls to the system for files, by the system call's name."""
    made = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: made.append("fsync"))
    return made


@pytest.fixture
def on_macos(monkeypatch, calls):
    """`on_macos(fails)`: `fcntl` knows the call that goes past the drive's own memory."""

    def play(fails=False):
        def asked(descriptor, command, *more):
            assert command == FULL
            if fails:
                raise OSError(45, "Operation not supported")
            calls.append("F_FULLFSYNC")
            return 0

        monkeypatch.setattr(fcntl, "F_FULLFSYNC", FULL, raising=False)
        monkeypatch.setattr(fcntl, "fcntl", asked)

    return play


def test_elsewhere_a_sync_is_a_sync(monkeypatch, calls):
    monkeypatch.delattr(fcntl, "F_FULLFSYNC", raising=False)
    to_disk(0)
    assert calls == ["fsync"]


def test_macos_is_asked_for_the_disk_itself_and_where_it_refuses_for_what_it_has(calls, on_macos):
    on_macos()
    to_disk(0)
    on_macos(fails=True)
    to_disk(0)
    assert calls == ["F_FULLFSYNC", "fsync"]


def test_files_their_names_and_settings_go_there(tmp_path, calls, on_macos, monkeypatch):
    on_macos()
    with (tmp_path / "a").open("wb") as file:
        Files().sync(file)
    Files().sync_folder(tmp_path)
    monkeypatch.setenv(config.HOME_VARIABLE, str(tmp_path / "home"))
    config.save_settings(config.Settings(memory=1))
    assert calls == ["F_FULLFSYNC"] * 3


def test_a_durable_transaction_is_one_of_the_disk_itself(tmp_path):
    Index(tmp_path / "index.sqlite", new=True).close()
    index = Index(tmp_path / "index.sqlite")

    def told():
        asked = [index.db.execute(f"PRAGMA {one}") for one in ("fullfsync", "synchronous")]
        return [one.fetchone()[0] for one in asked]

    assert told() == [0, 1]
    with index.durable_transaction():
        assert told() == [1, 2]
    assert told() == [0, 1]
    index.close()
