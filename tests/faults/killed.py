"""Processes that are killed at a call to their files: at the first, at the second, at each."""

import errno
import os
import shutil
import signal

import pytest
import worlds

from llm_mlx_promptcache.cache.disk.files import Files

MOST_CALLS = 90


def in_fork(action, *arguments):
    """The signal or status that an action in a child ends with; it may run no MLX."""
    child = os.fork()
    if not child:
        try:
            action(*arguments)
            os._exit(0)
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Killing(worlds.Failing):
    """`Files` of a process that is killed at its n-th call, before or behind it."""

    def __init__(self, at):
        super().__init__(errno.EIO, at)

    def _step(self):
        self.calls += 1
        if self.calls == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def sync(self, file):
        self._step()
        Files.sync(self, file)

    def sync_folder(self, folder):
        Files.sync_folder(self, folder)
        self._step()


def each_call():
    """1, 2, ...: numbers of calls, until a test breaks off; it fails where that never comes."""
    yield from range(1, MOST_CALLS)
    pytest.fail("more calls than were counted on")


def killed_copies(folder, action):
    """Copies of a folder in which `action(copy, files)` was killed, each a call later.

    In the last of them nothing killed it.
    """
    for at in each_call():
        copy = folder.parent / str(at)
        shutil.copytree(folder, copy)
        status = in_fork(action, copy, Killing(at))
        assert status in (0, -signal.SIGKILL)
        yield copy
        shutil.rmtree(copy)
        if status == 0:
            return
