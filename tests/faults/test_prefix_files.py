"""A file that somebody exported is anything: it comes in whole and right, or nothing of it does."""

import errno
import json
import os
import random
import shutil
import socket
import stat

import mlx.core as mx
import pytest
from forged_files import BOMBS, first_array, forged, framed
from killed import each_call
from sent_prefixes import TOKENS, arrays_of, exported, layers_of, taken

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.prompt_cache import PromptCache


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


def refused(content, tmp_path, error=ValueError):
    """Try to take content in; why that was refused. Nothing of it is stored."""
    file, folder = tmp_path / "sent", tmp_path / "cache"
    file.write_bytes(content)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
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
    assert "format 'llm-mlx-promptcache/9', not 'llm-mlx-promptcache/5'" in told


CODED = {
    "more rows than there are": first_array(lambda c: c.__setitem__(0, [1, 2, 1 << 40, 64])),
    "more rows than anything": first_array(lambda c: c.__setitem__(0, [1 << 62, 1 << 62])),
    "no blocks": first_array(lambda c: c[1].clear()),
    "blocks without end": first_array(lambda c: c[1].extend([1501] * 100_000)),
    "spans that are not its tokens": said(spans='[["' + "0" * 32 + '", 7, "user", true]]'),
    "spans without end": said(spans=json.dumps([["0" * 32, 1, "user", True]] * 9000)),
    "no spans": without("spans"),
}


@pytest.mark.parametrize("what", CODED)
def test_p2_a_forged_coding_comes_in_nowhere(worlds, coded, what, tmp_path):
    with worlds.watched():
        refused(forged(coded, CODED[what]), tmp_path)


@pytest.mark.parametrize("what", BOMBS)
def test_p2_a_frame_that_would_unpack_to_more_comes_in_nowhere(worlds, coded, what, tmp_path):
    size = 2 * len(TOKENS) * 64
    frame = framed(what, 4 * len(TOKENS) + size, size)  # behind the low bytes of the first array
    with worlds.watched():
        assert "frame" in refused(forged(coded, lambda *_: None, frame), tmp_path)


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
    for at in each_call():
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
    assert kept == {0, len(TOKENS)}  # whole, or nothing
