"""A prefix that is exported is a whole file or none, under its own name, and its owner's alone."""

import errno
import os
import signal
import stat
import tempfile
from functools import cache
from pathlib import Path

import mlx.core as mx
import pytest
from killed import Killing, each_call, in_fork
from sent_prefixes import ABOUT, TOKENS, arrays_of, layers_of, taken

from llm_mlx_promptcache.cache.disk import prefix_file
from llm_mlx_promptcache.cache.disk.files import Files
from llm_mlx_promptcache.cache.disk.span_file import host_tensors
from llm_mlx_promptcache.cache.disk.unpublished import ExportTarget
from llm_mlx_promptcache.cache.exchange import Prefix, export_prefix
from llm_mlx_promptcache.cache.layers.layout import layout_of
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.cache.span import Head
from llm_mlx_promptcache.cache.trie import as_tokens


def written(target, dtype, files):
    """Write a file without MLX, whose arrays are there."""
    prefix_file.write_prefix(ExportTarget(target, ABOUT), *held(dtype), files)


@cache
def held(dtype):
    """The prefix as `write_prefix` takes it: who has it runs no MLX."""
    layers = layers_of(dtype)
    (tensors,) = host_tensors([tuple(arrays_of(layer)) for layer in layers])
    return Head("", "", 0, "user", layout_of(layers), as_tokens(TOKENS), True), tensors


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_p4_the_nth_call_of_an_export_fails_for_every_n(worlds, dtype, tmp_path):
    held(dtype)
    for at in each_call():
        folder = tmp_path / str(at)
        folder.mkdir()
        files = worlds.Failing(errno.ENOSPC, at)
        try:
            written(folder / "sent", dtype, files)
        except OSError:
            # What could not be removed either is under a private name.
            assert not (folder / "sent").exists()
        else:
            assert taken(folder / "sent", tmp_path / f"cache-{at}") == len(TOKENS)
        if files.calls < at:
            break


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_p3_a_kill_at_any_call_of_an_export_leaves_a_whole_file_or_none(dtype, tmp_path):
    held(dtype)
    for at in each_call():
        target = tmp_path / str(at) / "sent"
        target.parent.mkdir()
        status = in_fork(written, target, dtype, Killing(at))
        assert status in (0, -signal.SIGKILL)
        if target.exists():
            assert taken(target, tmp_path / f"cache-{at}") == len(TOKENS)
        if status == 0:
            assert [path.name for path in target.parent.iterdir()] == ["sent"]
            break


@pytest.fixture(params=["hard links", "none of them"])
def links(request, monkeypatch):
    """A file system with hard links, and one that has none."""
    if request.param == "none of them":

        def refuse(*_):
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)


TAKEN = {
    "a file": lambda path: path.write_text("theirs"),
    "a link to nowhere": lambda path: path.symlink_to("/nowhere"),
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("what", TAKEN)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_what_takes_the_name_meanwhile_is_left_alone(links, what, dtype, tmp_path):
    target = tmp_path / "sent"

    class Taken(Files):
        def sync(self, file):
            TAKEN[what](target)

    with pytest.raises(FileExistsError):
        written(target, dtype, Taken())
    assert [path.name for path in tmp_path.iterdir()] == ["sent"]
    assert target.is_symlink() or target.is_dir() or target.read_text() == "theirs"


def test_a_name_is_given_without_hard_links_too(links, tmp_path):
    written(tmp_path / "sent", mx.bfloat16, Files())
    assert [path.name for path in tmp_path.iterdir()] == ["sent"]
    assert taken(tmp_path / "sent", tmp_path / "cache") == len(TOKENS)
    assert stat.S_IMODE((tmp_path / "sent").stat().st_mode) == 0o600


def test_a_name_that_can_not_be_kept_is_given_back_and_no_other(links, tmp_path):
    target = tmp_path / "sent"

    class Unsynced(Files):
        replaces = False

        def sync_folder(self, folder):
            if self.replaces:
                target.unlink()
                target.write_text("theirs")
            raise OSError(errno.EIO, "Input/output error")

    files = Unsynced()
    with pytest.raises(OSError, match="Input/output error"):
        written(target, mx.float32, files)
    assert list(tmp_path.iterdir()) == []
    files.replaces = True
    with pytest.raises(OSError, match="Input/output error"):
        written(target, mx.float32, files)
    assert [path.name for path in tmp_path.iterdir()] == ["sent"]
    assert target.read_text() == "theirs"


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_p4_a_full_disk_is_said_of_the_file_and_leaves_nothing(dtype, tmp_path):
    class FullDisk(Files):
        def create(self, path):
            super().create(path).close()
            return Path("/dev/full").open("wb", buffering=0)

    with pytest.raises(OSError, match="No space left") as told:
        written(tmp_path / "sent", dtype, FullDisk())
    assert told.value.filename == str(tmp_path / "sent")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_an_export_that_is_interrupted_at_any_call_is_whole_or_not_there(worlds, dtype, tmp_path):
    class Interrupted(worlds.Failing):
        def _step(self):
            self.calls += 1
            if self.calls == self.at:
                raise KeyboardInterrupt

    broken_off = 0
    for at in each_call():
        target = tmp_path / str(at) / "sent"
        target.parent.mkdir()
        try:
            written(target, dtype, Interrupted(errno.EIO, at))
        except KeyboardInterrupt:
            if target.exists():
                assert taken(target, tmp_path / f"cache-{at}") == len(TOKENS)
            else:
                assert list(target.parent.iterdir()) == []
                broken_off += 1
        else:
            assert [path.name for path in target.parent.iterdir()] == ["sent"]
            break
    assert broken_off > 3


def test_a_folder_of_somebody_elses_is_said_with_the_file():
    held(mx.float32)
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)

    def tried():
        if not os.geteuid():
            os.setuid(65_534)
        with pytest.raises(PermissionError) as told:
            written(folder / "sent", mx.float32, Files())
        assert told.value.filename == str(folder / "sent")

    try:
        assert in_fork(tried) == 0
        assert list(folder.iterdir()) == []
    finally:
        folder.rmdir()


def test_a_folder_that_is_not_there_is_named(tmp_path):
    cache = PromptCache("1GB")
    cache.insert("m", TOKENS, layers_of(mx.float32))
    with pytest.raises(NotADirectoryError) as told:
        export_prefix(cache, Prefix("m", TOKENS, ABOUT), tmp_path / "none" / "sent")
    assert told.value.filename == str(tmp_path / "none")


def test_law_12_an_export_is_its_owners_alone_from_its_first_byte(tmp_path):
    modes = []

    class Seen(Files):
        def create(self, path):
            made = super().create(path)
            modes.append(stat.S_IMODE(path.stat().st_mode))
            return made

    before = os.umask(0)
    try:
        written(tmp_path / "sent", mx.bfloat16, Seen())
    finally:
        os.umask(before)
    assert modes == [0o600]
    assert stat.S_IMODE((tmp_path / "sent").stat().st_mode) == 0o600
