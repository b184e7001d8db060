"""A file that somebody exported is anything: it comes in whole and right, or nothing of it does."""

import errno
import json
import os
import random
import shutil
import signal
import socket
import stat
import tempfile
from pathlib import Path

import mlx.core as mx
import pytest
import xxhash
import zstandard
from mlx_lm.models.cache import KVCache
from test_pack_crashes import in_fork, killing

from llm_mlx_promptcache.cache.disk import prefix_file
from llm_mlx_promptcache.cache.disk.files import Files
from llm_mlx_promptcache.cache.disk.span_file import host_tensors
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.disk.unpublished import ExportTarget
from llm_mlx_promptcache.cache.exchange import (
    Prefix,
    export_prefix,
    import_prefix,
    open_prefix,
)
from llm_mlx_promptcache.cache.layers.layout import layout_of
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.cache.span import Head
from llm_mlx_promptcache.cache.trie import as_tokens

TOKENS = list(range(500, 620))
ABOUT = {"model files": "a digest"}


def layers_of(dtype):
    mx.random.seed(3)
    made = []
    for _ in range(2):
        layer = KVCache()
        shape = (1, 2, len(TOKENS), 64)
        layer.update_and_fetch(*(mx.random.normal(shape).astype(dtype) for _ in range(2)))
        made.append(layer)
    return made


def arrays_of(layer):
    return [array[..., : len(TOKENS), :] for array in (layer.keys, layer.values)]


def exported(file, dtype):
    cache = PromptCache("1GB")
    cache.insert("m", TOKENS, layers_of(dtype))
    export_prefix(cache, Prefix("m", TOKENS, ABOUT), file)
    return file.read_bytes()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The bytes of a file of float32, a span's."""
    return exported(tmp_path_factory.mktemp("plain") / "sent", mx.float32)


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """The bytes of a file of bfloat16, a coded pack's."""
    return exported(tmp_path_factory.mktemp("coded") / "sent", mx.bfloat16)


@pytest.fixture(params=["plain", "coded"])
def content(request):
    return request.getfixturevalue(request.param)


def taken(file, folder, files=None):
    """Take a file in; returns the number of tokens that are kept."""
    store = DiskStore(folder, files=files)
    with open_prefix(file) as found:
        return import_prefix(PromptCache("1GB", store), found, "m", ABOUT)


def refused(content, tmp_path, error=ValueError):
    """Try to take content in; why that was refused. Nothing of it is stored."""
    file, folder = tmp_path / "sent", tmp_path / "cache"
    file.write_bytes(content)
    before = mx.get_peak_memory()
    with pytest.raises(error) as told:
        taken(file, folder)
    assert mx.get_peak_memory() - before < 64 << 20
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 500
    store = DiskStore(folder)
    assert store.stats()["spans"] == 0
    assert store.check() == []
    assert not store.spans_folder.exists() or list(store.spans_folder.iterdir()) == []
    return str(told.value)


def test_what_is_whole_comes_in(content, tmp_path):
    file = tmp_path / "sent"
    file.write_bytes(content)
    file.chmod(0o644)  # as it comes from elsewhere
    (tmp_path / "link").symlink_to(file)
    assert taken(tmp_path / "link", tmp_path / "cache") == len(TOKENS)
    (path,) = (tmp_path / "cache" / "spans").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    dtype = mx.bfloat16 if b"pack/2" in content[:4096] else mx.float32
    lease = PromptCache("1GB", DiskStore(tmp_path / "cache")).fetch("m", [*TOKENS, 1])
    for found, wanted in zip(lease.layers, layers_of(dtype), strict=True):
        for one, other in zip(arrays_of(found), arrays_of(wanted), strict=True):
            assert mx.array_equal(one.view(mx.uint8), other.view(mx.uint8))


def test_p1_a_file_cut_short_is_refused(content, tmp_path):
    length = 8 + int.from_bytes(content[:8], "little")
    ends = {0, 7, 8, 9, length - 1, length, length + 1, len(content) - 17, len(content) - 1}
    for end in sorted(ends | set(random.Random(1).sample(range(len(content)), 10))):
        refused(content[:end], tmp_path)
    refused(content + b"x", tmp_path)


def test_p1_a_flipped_bit_anywhere_is_refused(content, tmp_path):
    length = 8 + int.from_bytes(content[:8], "little")
    rng = random.Random(2)
    # The header's length, one in each run of its bytes, tokens, rows and the digest.
    header = [rng.randrange(at, min(at + 40, length)) for at in range(8, length, 40)]
    tokens = [length + rng.randrange(4 * len(TOKENS)) for _ in range(3)]
    rows = rng.sample(range(length + 4 * len(TOKENS), len(content) - 16), 15)
    digest = rng.sample(range(len(content) - 16, len(content)), 3)
    for at in (*range(8), *header, *tokens, *rows, *digest):
        bit = 1 << rng.randrange(8)
        refused(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :], tmp_path)


def forged(content, change, rows=lambda data: data):
    """A file with another header or other rows, and a digest that fits."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header["__metadata__"], header)
    text = json.dumps(header).encode()
    start, data = len(text).to_bytes(8, "little") + text, rows(content[8 + length : -16])
    coded = header["__metadata__"].get("format", "").endswith("pack/2")
    return start + data + xxhash.xxh3_128_digest(data + start if coded else start + data)


def said(**more):
    return lambda metadata, _: metadata.update(more)


def without(name):
    return lambda metadata, _: metadata.pop(name)


def tensor(name, **more):
    return lambda _, header: header[name].update(more)


ROWS = '[[2, ["rows", {}]]]'
FORGERIES = {
    "nothing": lambda metadata, header: header.clear() or header.update(__metadata__={}),
    "another format": said(format="llm-mlx-promptcache/9"),
    "no format": without("format"),
    "nothing that it is of": without("about"),
    "of a list": said(about="[1]"),
    "of nothing": said(about="{}"),
    "of very much": said(about=json.dumps({str(n): "" for n in range(100)})),
    "of numbers": said(about='{"model files": 7}'),
    "of a long word": said(about=json.dumps({"model files": "x" * 5000})),
    "of depth": said(about="[" * 100_000),
    "an id of elsewhere": said(file_id="../../../etc/passwd"),
    "an id that is none": said(file_id=7),
    "a parent": said(parent="0" * 32),
    "a parent of elsewhere": said(parent="../x"),
    "a start": said(start="5"),
    "a start that is none": said(start="-1"),
    "it can not be resumed": said(layout='[[2, ["window", {"size": 50, "keep": 0}]]]'),
    "layers that nobody knows": said(layout='[[2, ["mine", {}]]]'),
    "a layer more": said(layout='[[3, ["rows", {}]]]'),
    "millions of layers": said(layout='[[3000000, ["rows", {}]]]'),
    "layers that are none": said(layout="{"),
    "rows below nothing": tensor("layer.0.0", shape=[1, 2, -120, 64]),
    "more rows than there are": tensor("layer.0.0", shape=[1, 2, 1 << 40, 64]),
    "offsets that overlap": tensor("layer.0.1", data_offsets=[0, 61440]),
    "offsets beyond": tensor("layer.1.1", data_offsets=[0, 1 << 50]),
    "tokens of another type": tensor("tokens", dtype="F32"),
    "no tokens": lambda _, header: header.pop("tokens"),
    "a type that is none": tensor("layer.0.0", dtype="PICKLE"),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_p2_a_forged_header_comes_in_nowhere(worlds, content, what, tmp_path):
    with worlds.watched():
        refused(forged(content, FORGERIES[what]), tmp_path)


def test_p2_rows_that_are_fewer_than_tokens_come_in_nowhere(plain, tmp_path):
    fewer = tensor("layer.0.0", shape=[1, 4, 60, 64])
    assert "does not hold all" in refused(forged(plain, fewer), tmp_path)


def test_another_format_is_said(content, tmp_path):
    told = refused(forged(content, FORGERIES["another format"]), tmp_path)
    assert "format 'llm-mlx-promptcache/9', not 'llm-mlx-promptcache/4'" in told


def arrays(change):
    """A change of how a coded pack says that its first array is coded."""

    def made(metadata, _):
        told = json.loads(metadata["coded"])
        change(told["layer.0.0"])
        metadata["coded"] = json.dumps(told)

    return made


CODED = {
    "more rows than there are": arrays(lambda c: c.__setitem__(0, [1, 2, 1 << 40, 64])),
    "more rows than anything": arrays(lambda c: c.__setitem__(0, [1 << 62, 1 << 62])),
    "no blocks": arrays(lambda c: c[1].clear()),
    "blocks without end": arrays(lambda c: c[1].extend([1501] * 100_000)),
    "spans that are not its tokens": said(spans='[["' + "0" * 32 + '", 7, "user", true]]'),
    "spans without end": said(spans=json.dumps([["0" * 32, 1, "user", True]] * 9000)),
    "no spans": without("spans"),
}
BOMBS = {
    "a frame of a terabyte": lambda: b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little"),
    "a frame without a size": lambda: zstandard.ZstdCompressor(write_content_size=False).compress(
        bytes(15360)
    ),
    "a frame of more": lambda: zstandard.ZstdCompressor().compress(bytes(1 << 26))[:1000],
    "no frame": lambda: bytes(100),
}


@pytest.mark.parametrize("what", CODED)
def test_p2_a_forged_coding_comes_in_nowhere(worlds, coded, what, tmp_path):
    with worlds.watched():
        refused(forged(coded, CODED[what]), tmp_path)


@pytest.mark.parametrize("what", BOMBS)
def test_p2_a_frame_that_would_unpack_to_more_comes_in_nowhere(worlds, coded, what, tmp_path):
    start = 4 * len(TOKENS) + 2 * len(TOKENS) * 64  # behind the low bytes of the first array
    frame = BOMBS[what]()

    def change(data):
        return data[:start] + frame + data[start + len(frame) :]

    with worlds.watched():
        assert "frame" in refused(forged(coded, lambda *_: None, change), tmp_path)


def test_p2_no_bytes_raise_anything_but_a_refusal(content, tmp_path):
    rng = random.Random(4)
    for _ in range(20):
        made = bytearray(content)
        for _ in range(rng.randrange(1, 9)):
            at = rng.randrange(min(len(made), 4000))
            made[at : at + rng.randrange(4)] = rng.randbytes(rng.randrange(4))
        if bytes(made) != content:
            refused(bytes(made), tmp_path)


@pytest.mark.parametrize("what", ["a pipe", "a folder", "a device", "a socket", "nothing"])
def test_p7_what_is_no_file_is_refused_at_once(worlds, what, tmp_path):
    file = tmp_path / "sent"
    if what == "a pipe":
        os.mkfifo(file)
    elif what == "a folder":
        file.mkdir()
    elif what == "a device":
        file.symlink_to("/dev/zero")
    elif what == "a socket":
        made = socket.socket(socket.AF_UNIX)
        made.bind(str(file))
        made.close()
    with worlds.watched(10), pytest.raises((ValueError, OSError)):
        taken(file, tmp_path / "cache")
    assert not (tmp_path / "cache" / "spans").exists()


def test_a_tier_that_is_not_ours_is_the_least(plain, tmp_path):
    (tmp_path / "sent").write_bytes(forged(plain, said(tier="everything")))
    taken(tmp_path / "sent", tmp_path / "cache")
    (span,) = DiskStore(tmp_path / "cache").listing().spans
    assert span.tier == "assistant"


def test_p4_the_nth_call_of_an_import_fails_for_every_n(worlds, content, tmp_path):
    file = tmp_path / "sent"
    file.write_bytes(content)
    kept = set()
    for at in range(1, 60):
        folder = tmp_path / str(at)
        files = worlds.Failing(errno.ENOSPC, at)
        taken(file, folder, files)
        store = DiskStore(folder)
        store.sweep(every=True)
        kept.add(store.stats()["tokens"])
        assert store.check() == []
        store.close()
        shutil.rmtree(folder, ignore_errors=True)
        if files.calls < at:
            break
    else:
        pytest.fail("more calls than were counted on")
    assert kept == {0, len(TOKENS)}  # whole, or nothing


def written(target, dtype, files):
    """Write a file without MLX, whose arrays are there."""
    prefix_file.write_prefix(ExportTarget(target, ABOUT), *held(dtype), files)


def held(dtype):
    if dtype not in _held:
        layers = layers_of(dtype)
        (tensors,) = host_tensors([tuple(arrays_of(layer)) for layer in layers])
        head = Head("", "", 0, "user", layout_of(layers), as_tokens(TOKENS), True)
        _held[dtype] = head, tensors
    return _held[dtype]


_held = {}


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_p4_the_nth_call_of_an_export_fails_for_every_n(worlds, dtype, tmp_path):
    held(dtype)
    for at in range(1, 60):
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
    else:
        pytest.fail("more calls than were counted on")


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_p3_a_kill_at_any_call_of_an_export_leaves_a_whole_file_or_none(worlds, dtype, tmp_path):
    held(dtype)
    for at in range(1, 60):
        target = tmp_path / str(at) / "sent"
        target.parent.mkdir()
        files = killing(worlds, at)
        status = in_fork(lambda: written(target, dtype, files))  # noqa: B023
        assert status in (0, -signal.SIGKILL)
        if target.exists():
            assert taken(target, tmp_path / f"cache-{at}") == len(TOKENS)
        if status == 0:
            assert [path.name for path in target.parent.iterdir()] == ["sent"]
            break
    else:
        pytest.fail("more calls than were counted on")


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
    for at in range(1, 60):
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
    else:
        pytest.fail("more calls than were counted on")
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
