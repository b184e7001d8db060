"""The state of a process, by /proc or, where there is none, by ps."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llm_mlx_promptcache.host import asking
from llm_mlx_promptcache.host.asking import state_of


@pytest.fixture
def stopped():
    """A process that is stopped, as Ctrl-Z does it."""
    with subprocess.Popen([sys.executable, "-IS", "-c", "input()"], stdin=subprocess.PIPE) as one:
        one.send_signal(signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(one.pid, os.WUNTRACED)[1])
        yield one.pid
        one.kill()


@pytest.mark.parametrize("told_by", ["the system", "ps"])
def test_a_stopped_process_is_told_as_one(stopped, monkeypatch, told_by):
    if told_by == "ps":
        if not Path("/bin/ps").exists():
            pytest.skip("there is no ps")
        monkeypatch.setattr(asking, "Path", lambda path: Path("/nowhere"))
    assert state_of(stopped).startswith("stopped")


def test_of_a_process_that_is_none_nothing_is_known():
    assert state_of(2**22 + 1) == "unknown"
