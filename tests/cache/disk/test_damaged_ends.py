"""Damage in the ends of a span: they go alone, and rows stay."""

import errno
import os
from array import array

import pytest
from paths_with_ends import (
    TURN,
    conversation,
    fetched,
    files_of,
    flip,
    ids_of,
    metadata_of,
    without_ends,
)
from played_layers import layers_of, play

from llm_mlx_promptcache.cache.disk.files import Files
from llm_mlx_promptcache.cache.disk.span_file import host_tensors
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.layers.checkpoints import checkpoint_at
from llm_mlx_promptcache.cache.layers.layout import PathPart, cut, layout_of
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.cache.span import NewSpan


def spoiled(folder, turns=5, family="state"):
    """A conversation whose second turn has a damaged state, or window; its path and that file."""
    ids = conversation(folder, family, turns)
    second = files_of(folder)[1]
    flip(second, without_ends(second) + 40)
    return ids, second


ENDS = ["state", "lists", "windows"]


@pytest.mark.parametrize("family", ENDS)
def test_p1_a_damaged_state_goes_alone_and_only_once_it_is_used(tmp_path, family):
    ids, second = spoiled(tmp_path, 5, family)
    store = DiskStore(tmp_path)
    assert fetched(store, ids, family) == len(ids)
    store.tend()
    assert second.exists()
    # Its own end is where it is used: found, and all else stays, before and behind the mending.
    for _ in range(2):
        assert fetched(store, ids[: 2 * TURN], family) == TURN
        assert fetched(store, ids, family) == len(ids)
        store.tend()
        assert not second.exists()
    assert store.check() == []
    cache = PromptCache("1GB", store)
    lease = cache.fetch("m", [*ids[: 2 * TURN], 5])
    cache.insert("m", ids[: 2 * TURN], play(lease.layers, ids[TURN : 2 * TURN]))
    cache.flush()
    assert fetched(DiskStore(tmp_path), ids[: 2 * TURN], family) == 2 * TURN
    assert fetched(DiskStore(tmp_path), ids, family) == len(ids)
    assert store.check() == []


@pytest.mark.parametrize("family", ["windows", "lists"])
def test_windows_that_reach_back_to_a_damaged_one_are_stored_again(tmp_path, family):
    """The span behind it says that it resumes, as it did when it was written."""
    ids, _ = spoiled(tmp_path, 6, family)
    third, store = ids[: 3 * TURN], DiskStore(tmp_path)
    assert fetched(store, third, family) == TURN
    cache = PromptCache("1GB", store)
    lease = cache.fetch("m", [*third, 5])
    cache.insert("m", third, play(lease.layers, third[TURN:]))
    cache.flush()
    files = len(files_of(tmp_path))
    for end in range(3 * TURN, len(ids) + 1, TURN):
        assert fetched(DiskStore(tmp_path), ids[:end], family) == end
    # Once is enough: what is behind the checkpoint goes on from it.
    cache = PromptCache("1GB", DiskStore(tmp_path))
    for end in range(3 * TURN, len(ids) + 1, TURN):
        cache.insert("m", ids[:end], play(layers_of(family), ids[:end]))
    cache.flush()
    assert len(files_of(tmp_path)) == files
    assert store.check() == []


def test_law_6_a_packer_that_ends_has_settled_what_it_found_damaged(tmp_path):
    _, second = spoiled(tmp_path, 5, "windows")
    for _ in DiskStore(tmp_path).compact():
        pass
    assert not second.exists()
    assert DiskStore(tmp_path).check() == []


@pytest.mark.parametrize("family", ENDS)
def test_law_6_a_check_takes_out_a_damaged_state_and_leaves_what_hangs_on_it(tmp_path, family):
    ids, second = spoiled(tmp_path, 5, family)
    store = DiskStore(tmp_path)
    store.pin("m", array("I", ids[: 2 * TURN]), pinned=True)
    (found,) = store.check(fix=True)
    assert f"states and windows of span {second.stem} can't be read" in found
    for _ in range(2):
        store.check()
        assert store.check() == []
        assert fetched(store, ids[: 2 * TURN], family) == TURN
        assert fetched(store, ids, family) == len(ids)
        assert store.stats()["bytes"] == sum(path.stat().st_size for path in files_of(tmp_path))
        assert len(store._index.run(lambda index: index.pinned(), [])) == 1
        store.close()
        (tmp_path / "index.sqlite").unlink()  # the files alone tell it too


def test_law_6_a_state_of_which_no_rows_are_whole_goes_with_them(tmp_path):
    ids, second = spoiled(tmp_path)
    store = DiskStore(tmp_path)
    assert fetched(store, ids[: 2 * TURN], "state") == TURN
    flip(second, without_ends(second) - 40)
    store.tend()
    assert len(files_of(tmp_path)) == 1
    assert store.check() == []


def test_law_6_a_damaged_checkpoint_goes_alone_and_is_the_reason_that_is_told(tmp_path):
    """It is nothing but a state."""
    ids = conversation(tmp_path, "state", 3)
    cache = PromptCache("1GB", DiskStore(tmp_path))
    lease = cache.fetch("m", [*ids[:50], 5])
    assert (lease.cached, lease.why.reason) == (2 * TURN, "checkpoint")
    cache.insert("m", ids[:50], play(lease.layers, ids[40:50]))
    cache.flush()
    assert fetched(DiskStore(tmp_path), ids[:50], "state") == 50
    (checkpoint,) = [path for path in files_of(tmp_path) if metadata_of(path)["start"] == "50"]
    flip(checkpoint, without_ends(checkpoint) + 40)
    store = DiskStore(tmp_path)
    lease = PromptCache("1GB", store).fetch("m", [*ids[:50], 5])
    assert (lease.cached, lease.why.reason) == (2 * TURN, "unreadable")
    store.tend()
    assert len(files_of(tmp_path)) == 3
    assert store.check() == []


def test_law_7_a_state_that_can_not_be_taken_out_is_left_unread(tmp_path, monkeypatch, caplog):
    ids, second = spoiled(tmp_path)
    files = Files()
    store = DiskStore(tmp_path, files=files)
    monkeypatch.setattr(files, "create", _full)
    for _ in range(3):
        assert fetched(store, ids[: 2 * TURN], "state") == TURN
        assert fetched(store, ids, "state") == len(ids)
        store.tend()
    assert second.exists()
    assert len(caplog.records) == 2
    monkeypatch.undo()
    store = DiskStore(tmp_path)
    assert fetched(store, ids[: 2 * TURN], "state") == TURN
    store.tend()
    assert not second.exists()


def _full(path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_law_16_a_path_that_lacks_rows_before_a_checkpoint_is_told_to_end_there(tmp_path, caplog):
    """As versions before this one may have left it: a file of a state without its rows."""
    ids = array("I", conversation(tmp_path, "state", 1) + ids_of(3)[TURN:])
    store = DiskStore(tmp_path)
    layers = play(layers_of("state"), ids.tolist())
    layout = layout_of(layers)
    pieces = cut(layout, layers, len(ids), TURN, len(ids))
    hole = [None if kind.anywhere else piece for kind, piece in zip(layout, pieces, strict=True)]
    state = checkpoint_at(layout, [PathPart(0, len(ids), len(ids), pieces)], len(ids))
    drafts = [NewSpan("m", layout, ids[:40], TURN, "user", *host_tensors(hole), False)]
    drafts += [NewSpan("m", layout, ids, 40, "user", *host_tensors(pieces_at(layers, 40)), False)]
    drafts += [NewSpan("m", layout, ids, len(ids), "user", *host_tensors(state), True)]
    assert all(store.save(draft) for draft in drafts)
    caplog.clear()
    lease = PromptCache("1GB", store).fetch("m", [*ids, 5])
    assert (lease.cached, lease.why.reason, lease.matched) == (TURN, "checkpoint", len(ids))
    assert caplog.records == []


def pieces_at(layers, start):
    """The rows of layers from a token on, without their state."""
    layout, end = layout_of(layers), layers[0].offset
    return [
        None if not kind.anywhere else p
        for kind, p in zip(layout, cut(layout, layers, end, start, end), strict=True)
    ]


@pytest.mark.parametrize("what", ["gone", "cut short", "another header"])
def test_law_16_a_file_that_can_not_be_opened_is_the_reason_that_is_told(tmp_path, what):
    ids = conversation(tmp_path, "state", 3)
    second = files_of(tmp_path)[1]
    if what == "gone":
        second.unlink()
    elif what == "cut short":
        os.truncate(second, 100)
    else:
        flip(second, 20)
    lease = PromptCache("1GB", DiskStore(tmp_path)).fetch("m", [*ids, 5])
    assert (lease.cached, lease.why.reason) == (TURN, "unreadable")


def test_p1_damaged_rows_are_noticed_where_the_states_behind_them_are_left(tmp_path):
    ids = conversation(tmp_path, "state", 5)
    second = files_of(tmp_path)[1]
    flip(second, without_ends(second) - 40)
    assert fetched(DiskStore(tmp_path), ids, "state") == TURN
