"""A cache's folder says that it is one: no backup has it."""

import ctypes
import os
import plistlib
import stat
import sys
from array import array
from types import SimpleNamespace

import pytest
from worlds import NAMESPACE, put

from llm_mlx_promptcache.cache.disk import marks
from llm_mlx_promptcache.cache.disk.marks import mark_as_cache, marks_of
from llm_mlx_promptcache.cache.disk.store import DiskStore

SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"  # https://bford.info/cachedir/


def test_a_store_that_is_written_to_is_marked_and_one_that_is_read_is_not(tmp_path):
    store = DiskStore(tmp_path / "cache", "20MB")
    assert store.lookup(NAMESPACE, array("I", [1, 2])) is not None
    assert not (tmp_path / "cache" / "CACHEDIR.TAG").exists()
    put(store, [1, 2, 3])
    tag = tmp_path / "cache" / "CACHEDIR.TAG"
    assert tag.read_bytes().startswith(SIGNATURE + b"\n")
    assert stat.S_IMODE(tag.stat().st_mode) == 0o600
    store.clear()
    assert tag.exists()
    assert store.check() == []


def test_the_marks_of_a_folder_are_seen(tmp_path, on_macos):
    assert not marks_of(tmp_path).tag
    assert not marks_of(tmp_path / "gone").tag
    (tmp_path / "CACHEDIR.TAG").write_bytes(b"somebody else's")
    assert not marks_of(tmp_path).tag
    (tmp_path / "CACHEDIR.TAG").unlink()
    mark_as_cache(tmp_path)
    assert marks_of(tmp_path).tag
    for size, excluded in ((-1, False), (60, True)):
        on_macos(SimpleNamespace(getxattr=Asked(size)))
        assert marks_of(tmp_path).excluded is excluded
    on_macos(object())
    assert marks_of(tmp_path).excluded is False


def test_what_is_there_stays_and_what_was_begun_is_finished(tmp_path):
    tag = tmp_path / "CACHEDIR.TAG"
    tag.write_bytes(b"somebody else's")
    mark_as_cache(tmp_path)
    assert tag.read_bytes() == b"somebody else's"
    tag.write_bytes(b"")
    mark_as_cache(tmp_path)
    assert tag.read_bytes().startswith(SIGNATURE)


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "gone"])
def test_where_no_tag_can_be_nothing_happens(tmp_path, kind):
    folder, outside = tmp_path / "cache", tmp_path / "outside"
    folder.mkdir()
    outside.write_bytes(b"")
    tag = folder / "CACHEDIR.TAG"
    {
        "link": lambda: tag.symlink_to(outside),
        "folder": tag.mkdir,
        "pipe": lambda: os.mkfifo(tag),
        "gone": folder.rmdir,
    }[kind]()
    mark_as_cache(folder)
    assert outside.read_bytes() == b""


class Asked:
    """macOS's getxattr, which tells a size where it is given no buffer."""

    def __init__(self, size):
        self.size = size

    def __call__(self, path, name, buffer, *rest):
        assert buffer is None
        return self.size


class Library:
    """macOS's, as far as it is asked."""

    def __init__(self, answer=0):
        self.answer, self.asked = answer, []

    def setxattr(self, path, name, value, size, position, options):
        self.asked.append((path, name, value[: size.value], position.value, options.value))
        return self.answer


@pytest.fixture
def on_macos(monkeypatch):
    """`on_macos(library)`: what is asked of the system is asked of this one."""

    def play(library):
        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.setattr(ctypes, "CDLL", lambda name: library)

    return play


@pytest.mark.parametrize("answer", [0, -1])
def test_time_machine_is_told_on_macos(tmp_path, on_macos, answer):
    library = Library(answer)
    on_macos(library)
    mark_as_cache(tmp_path)
    ((path, name, value, position, options),) = library.asked
    assert (path, position, options) == (os.fsencode(tmp_path), 0, 0)
    assert name == b"com.apple.metadata:com_apple_backup_excludeItem"
    assert plistlib.loads(value) == "com.apple.backupd"


def test_a_system_without_attributes_is_no_error(tmp_path, on_macos):
    on_macos(object())
    mark_as_cache(tmp_path)
    assert (tmp_path / marks._TAG).exists()
