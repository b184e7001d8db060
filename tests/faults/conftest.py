"""The worlds of the fault tests, and children that live in them."""

import os
import shutil
import subprocess
import sys

import pytest
import worlds as worlds_module

from llm_mlx_promptcache.cache.disk.file_ids import PACK_SUFFIX
from llm_mlx_promptcache.cache.disk.store import DiskStore

WORLDS = worlds_module.__file__


@pytest.fixture(scope="session")
def worlds():
    return worlds_module


@pytest.fixture
def ids(worlds):
    """A path."""
    return worlds.paths(1)[0]


@pytest.fixture(scope="session")
def kept_store(worlds, tmp_path_factory):
    """A store of some paths that share a beginning, to be copied."""
    made = tmp_path_factory.mktemp("kept") / "cache"
    store = DiskStore(made)
    for path in worlds.paths(3, worlds.PATHS):
        worlds.put(store, path)
    store._index.run(lambda index: index.log.shrink(), None)
    store.close()
    return made


@pytest.fixture
def folder(kept_store, tmp_path):
    """A copy of it; nobody has it open."""
    return shutil.copytree(kept_store, tmp_path / "cache")


@pytest.fixture
def talk(worlds, tmp_path):
    """A conversation of some turns, with a branch; nobody has its store open. Its paths."""
    store = DiskStore(tmp_path / "cache", "20MB")
    ids = worlds.turns(store, 5)
    branch = [*ids[:30], *range(1001, 1012)]
    worlds.put(store, branch)
    store._index.run(lambda index: index.log.shrink(), None)
    store.close()
    return tmp_path / "cache", [ids, branch]


@pytest.fixture
def packed(worlds, talk):
    """That conversation as a pack: its folder, its path and the pack's file."""
    folder, (ids, branch) = talk
    store = DiskStore(folder, "20MB")
    assert worlds.compacted(store) == 1
    store._index.run(lambda index: index.log.shrink(), None)
    store.close()
    (path,) = (folder / "spans").glob("*" + PACK_SUFFIX)
    return folder, ids, branch, path


@pytest.fixture
def child():
    """`child(what, folder, seed, ..., before=[...])` starts a process, which dies with the test."""
    started = []

    def start(what, folder, seed=1, *more, before=(), **options):
        command = [*before, sys.executable, WORLDS, what, str(folder), str(seed), *more]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=environment, **(pipes | options)))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def finished(child):
    """Run a child that must end well; returns its output and errors."""

    def run(*arguments, **options):
        process = child(*arguments, **options)
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        return out.strip(), error

    return run
