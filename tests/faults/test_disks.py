"""Disks that are full, failing, read-only or somebody else's: one warning, and no harm (P4)."""

import errno
import os
import resource
import shutil
import subprocess

import pytest
from killed import each_call
from worlds import full_file

from llm_mlx_promptcache.cache.disk.files import Files, file_system_in, is_remote
from llm_mlx_promptcache.cache.disk.store import DiskStore

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount, and be another")


def filled(worlds, folder):
    """One path is stored, and nobody has the index open any more."""
    store = DiskStore(folder)
    worlds.put(store, worlds.paths(1)[0])
    store.close()


def unfinished(store):
    return [p for p in store.spans_folder.iterdir() if p.name.startswith(".tmp-")]


class FullDisk(Files):
    """Writes fail as on a full disk; the name is made as always."""

    def create(self, path):
        super().create(path).close()
        return full_file()


def test_p4_dev_full_is_one_warning_and_leaves_nothing(worlds, tmp_path, ids, caplog):
    store = DiskStore(tmp_path, files=FullDisk())
    for path in worlds.paths(2):
        worlds.put(store, path)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert not unfinished(store)
    assert store.check() == []


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place])
    if done.returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@needs_root
def test_p4_a_disk_that_fills_up_is_one_warning_and_what_was_stored_is_still_read(
    worlds, small_disk, ids, caplog
):
    store = DiskStore(small_disk / "cache", "1GB")
    worlds.put(store, ids)
    for seed in range(200):
        worlds.put(store, worlds.paths(seed, 1, 60)[0])
    assert len(caplog.records) == 1
    assert "written" in caplog.text or "off" in caplog.text
    assert not unfinished(store)
    again = DiskStore(small_disk / "cache", "1GB")
    assert worlds.get(again, ids) in (0, len(ids))


def test_p4_a_limit_on_file_sizes_is_survived(finished, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))

    _, error = finished("once", tmp_path, 1, preexec_fn=limit)
    assert error.count("\n") <= 1
    assert DiskStore(tmp_path).check() == []


@needs_strace
@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EDQUOT"])
@pytest.mark.parametrize("call", ["write:when=1", "pwrite64:when=3+"])
def test_p4_a_write_that_fails_in_the_system_is_survived(finished, worlds, tmp_path, error, call):
    filled(worlds, tmp_path)
    name, when = call.split(":")
    inject = f"inject={name}:error={error}:{when}"
    before = ("strace", "-f", "-qq", "-o", os.devnull, "-e", inject)
    _, said = finished("once", tmp_path, 2, before=before)
    assert said.count("\n") == 1
    store = DiskStore(tmp_path)
    store.sweep(every=True)
    assert store.check() == []
    assert worlds.get(store, worlds.paths(1)[0]) == len(worlds.paths(1)[0])


@needs_strace
@pytest.mark.parametrize(
    "call", ["readv:when=1", "read:when=2+", "pread64:when=2+", "openat:when=1+"]
)
def test_p4_a_read_that_fails_in_the_system_is_a_miss(finished, worlds, tmp_path, call):
    filled(worlds, tmp_path)
    name, when = call.split(":")
    inject = f"inject={name}:error=EIO:{when}"
    # Only what lies in the store fails: a process could not even start otherwise.
    paths = [f"-P{path}" for path in tmp_path.rglob("*") if path.is_file()]
    before = ("strace", "-f", "-qq", "-o", os.devnull, "-e", inject, *paths)
    out, said = finished("fetch", tmp_path, 1, before=before)
    assert out in ("0", str(len(worlds.paths(1)[0])))
    assert said.count("\n") == (out == "0")
    assert DiskStore(tmp_path).check() == []


def test_p4_a_file_where_the_folder_should_be_is_one_warning(worlds, tmp_path, ids, caplog):
    place = tmp_path / "cache"
    place.write_text("mine")
    store = DiskStore(place)
    worlds.put(store, ids)
    assert worlds.get(store, ids) == 0
    assert len(caplog.records) == 1
    assert place.read_text() == "mine"


class Elsewhere(Files):
    """A disk that the system reports as another machine's."""

    def file_system(self, folder):
        return "nfs4"


def test_a_network_file_system_is_one_warning_and_still_verified(worlds, tmp_path, ids, caplog):
    store = DiskStore(tmp_path, files=Elsewhere())
    worlds.put(store, ids)
    store.close()
    assert worlds.get(store, ids) == len(ids)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "network file system (nfs4)" in caplog.text
    (path,) = store.spans_folder.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    assert worlds.get(store, ids) == 0


@needs_root
def test_the_system_is_asked_for_the_file_system(small_disk, tmp_path, worlds, ids, caplog):
    assert Files().file_system(small_disk) == "tmpfs"
    assert Files().file_system(tmp_path) not in ("", "tmpfs")
    worlds.put(DiskStore(tmp_path / "cache"), ids)
    assert not caplog.records  # no local one is taken for another machine's


MOUNTS = """\
22 27 0:21 / /proc rw,relatime shared:13 - proc proc rw
31 27 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
40 31 0:52 / /home rw,relatime shared:9 master:1 - fuse.sshfs me@there:/home rw
"""


def test_file_systems_are_found_by_their_device():
    assert file_system_in(MOUNTS, os.makedev(254, 0)) == "ext4"
    assert file_system_in(MOUNTS, os.makedev(0, 52)) == "fuse.sshfs"
    with pytest.raises(ValueError, match="not in the table"):
        file_system_in(MOUNTS, os.makedev(9, 9))
    remote = [
        name
        for name in ("ext4", "apfs", "btrfs", "fuseblk", "nfs", "fuse.sshfs", "9p")
        if is_remote(name)
    ]
    assert remote == ["nfs", "fuse.sshfs", "9p"]


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EACCES])
def test_p4_the_nth_call_fails_for_every_n(worlds, tmp_path, ids, error, sticky, caplog):
    for at in each_call():
        folder = tmp_path / str(at)
        files = worlds.Failing(error, at, sticky)
        store = DiskStore(folder, "20MB", files=files)
        caplog.clear()
        worlds.put(store, ids)
        worlds.put(store, worlds.paths(2)[0])
        worlds.get(store, ids)
        assert len(caplog.records) <= 2
        healthy = DiskStore(folder, "20MB")
        healthy.sweep(every=True)
        assert healthy.check() == []
        assert worlds.get(healthy, ids) in (0, len(ids))
        healthy.close()
        store.close()
        if files.calls < at:
            break


def as_nobody(action):
    """The status of an action in a child of another user: as root, modes prove nothing.

    The child must not run MLX: it has none of its threads.
    """
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os._exit(action())
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@needs_root
@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_p4_a_folder_that_cannot_be_written_is_one_warning(worlds, tmp_path, ids, mode, caplog):
    for level in (tmp_path, *tmp_path.parents):
        if str(level) not in ("/", "/tmp"):
            level.chmod(level.stat().st_mode | 0o055)
    folder = tmp_path / "cache"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    folder.chmod(mode)
    span = worlds.new_span(ids)

    def tried():
        store = DiskStore(folder / "deeper")
        stored = store.save(span)
        found = store.lookup("m", span.path).end
        return 10 * (stored or found > 0) + len(caplog.records)

    assert as_nobody(tried) == 1


@needs_root
def test_p4_a_folder_of_somebody_else_is_refused_with_one_warning(worlds, tmp_path, ids, caplog):
    folder = tmp_path / "cache"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    worlds.put(DiskStore(folder), ids)
    assert "belongs to user 65534" in caplog.text
    assert list(folder.iterdir()) == []


def test_p4_a_span_larger_than_the_budget_is_not_stored_and_evicts_nothing(worlds, tmp_path, ids):
    store = DiskStore(tmp_path, "20MB")
    worlds.put(store, ids)
    held = store.stats()["bytes"]
    small = DiskStore(tmp_path, held + 500)
    long = list(range(2000))
    worlds.put(small, long)
    assert worlds.get(small, long) == 0
    assert worlds.get(small, ids) == len(ids)


def test_p5_the_default_budget_is_a_tenth_of_the_free_space_and_spares_the_disk(tmp_path, worlds):
    class Small(Files):
        free = 3_000_000

        def space(self, folder):
            return self.free, 40_000_000

    store = DiskStore(tmp_path, files=Small())
    assert store.stats()["budget"] == 300_000
    for seed in range(5):
        worlds.put(store, worlds.paths(seed)[0])
    Small.free = 1_000_000  # below a twentieth of the disk: what we hold must shrink
    worlds.put(store, worlds.paths(9)[0])
    assert store.stats()["spans"] == 0
    assert store.check() == []
