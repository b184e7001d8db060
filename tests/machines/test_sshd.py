"""The second rank behind a real ssh and a real sshd, both of the tests' own."""

import os
import signal
import tempfile
from pathlib import Path

import own_sshd
import pytest
from served_homes import ServedHome

pytestmark = [
    pytest.mark.skipif(bool(own_sshd.why_none()), reason=own_sshd.why_none()),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def home(tiny_llama):
    """A user whose `mac1` is this machine by way of sshd, with a home of its own there."""
    with tempfile.TemporaryDirectory(prefix="m", dir="/tmp") as folder:
        made = ServedHome(Path(folder), tiny_llama())
        there = {name: made.environment[name] for name in ("LLM_MLX_CACHED_HOME", "HF_HUB_OFFLINE")}
        there["LD_PRELOAD"] = os.environ.get("LD_PRELOAD", "")
        sshd = own_sshd.OwnSshd(made.folder / "sshd", there)
        try:
            made.write_ssh(sshd.client())
            yield made
            made.end()
        finally:
            sshd.end()


def test_a_rank_behind_sshd_answers_and_ends_with_stop(home):
    home.serve("far")
    answer, _ = home.llm("-m", "mlx-cached/far", "-o", "max_tokens", "4", "Hello the capital")
    assert answer
    assert [one["host"] for one in home.group("far")["ranks"]] == ["127.0.0.1", "mac1"]
    home.ours("stop", "far")
    home.wait_for(set())


def test_behind_sshd_nobody_outlives_a_killed_rank_0(home):
    home.serve("lost")
    os.kill(home.group("lost")["pid"], signal.SIGKILL)
    home.wait_for(set())


def test_what_ssh_says_reaches_the_user(home):
    """A host key that is not the known one: ssh asks nobody, and its words are the error."""
    known = home.folder / "sshd" / "known_hosts"
    kept = known.read_text()
    known.write_text("")
    try:
        _, errors = home.serve("unknown", status=1)
    finally:
        known.write_text(kept)
    assert "mac1: it ended (status 255): Host key verification failed." in errors
    home.wait_for(set())
