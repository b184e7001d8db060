"""Anything in the place of an index's files, or named in them: replaced, not touched (P7)."""

import os
import struct

import pytest
from indexes import used
from worlds import PATHS

from llm_mlx_promptcache.cache.disk.damage import DamagedIndex
from llm_mlx_promptcache.cache.disk.file_ids import span_path


def as_link(path, elsewhere):
    elsewhere.write_bytes(b"somebody's")
    path.unlink(missing_ok=True)
    path.symlink_to(elsewhere)


def as_pipe(path, elsewhere):
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)


def as_folder(path, elsewhere):
    path.unlink(missing_ok=True)
    path.mkdir()


def as_full_folder(path, elsewhere):
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "kept").write_bytes(b"somebody's")


def as_foreign(path, elsewhere):
    if os.geteuid():
        pytest.skip("only root can give files away")
    path.touch()
    os.chown(path, 65534, 65534)


def as_wide(path, elsewhere):
    path.touch()
    path.chmod(0o666)


def as_closed(path, elsewhere):
    path.touch()
    path.chmod(0o000)


NAMES = ["index.sqlite", "index.sqlite-wal", "index.sqlite-shm", "index.damaged", "pins.json"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "turn",
    [as_link, as_pipe, as_folder, as_full_folder, as_foreign, as_wide, as_closed],
)
def test_p7_what_is_not_our_own_plain_index_is_replaced(worlds, folder, name, turn, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    turn(folder / name, elsewhere)
    _, found = used(worlds, folder)
    assert found == PATHS
    assert not elsewhere.exists() or elsewhere.read_bytes() == b"somebody's"
    if turn is as_full_folder:
        assert [path.read_bytes() for path in folder.glob("*/kept")] == [b"somebody's"]
    for path in folder.glob("index.sqlite*"):
        assert path.is_file()
        assert not path.is_symlink()
        assert path.stat().st_mode & 0o077 == 0
        assert path.stat().st_uid == os.geteuid()


def test_p7_a_journal_that_names_a_file_of_elsewhere_removes_nothing(worlds, folder, tmp_path):
    """SQLite plays a journal back, and then removes the "super-journal" that it names."""
    mine = tmp_path / "mine.safetensors"
    mine.write_text("weights")
    magic, name = bytes.fromhex("d9d505f920a163d7"), os.fsencode(mine)
    pages = (folder / "index.sqlite").stat().st_size // 4096
    head = (magic + struct.pack(">5I", 0, 1, pages, 512, 4096)).ljust(512, b"\0")
    locked = struct.pack(">I", (1 << 30) // 4096 + 1)
    journal = folder / "index.sqlite-journal"
    journal.write_bytes(head + locked + name + struct.pack(">2I", len(name), sum(name)) + magic)
    journal.chmod(0o600)
    _, found = used(worlds, folder)
    assert found == PATHS
    assert mine.read_text() == "weights"
    assert not journal.exists()


@pytest.mark.parametrize(
    "file_id", ["", "x", "../../x/weights", "A" * 32, "0" * 33, "0" * 31 + "\n"]
)
def test_p7_no_path_is_made_of_what_is_no_file_id(tmp_path, file_id):
    with pytest.raises(DamagedIndex):
        span_path(tmp_path, file_id)
