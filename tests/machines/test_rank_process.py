"""A rank as its starter sees it: how it is started, what it says, and that it outlives nobody."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_orders import RANK

from llm_mlx_promptcache.machines import rank_process
from llm_mlx_promptcache.machines.hostfile import Machine
from llm_mlx_promptcache.machines.rank_process import RankFailed, RankProcess, rank_command

HERE = Machine("127.0.0.1", ("127.0.0.1",))
STAND_IN = str(Path(__file__).with_name("stand_in_rank.py"))
LONG = 60


def soon():
    return time.monotonic() + LONG


@pytest.fixture
def rank(tmp_path, monkeypatch):
    """`rank(kind)` -> a stand-in that was started as a rank; each is gone at the end."""
    made = []

    def start(kind):
        command = [sys.executable, STAND_IN, kind, str(tmp_path / "record")]
        monkeypatch.setattr(rank_process, "rank_command", lambda *_: command)
        made.append(RankProcess(HERE, RANK, sys.executable))
        return made[-1]

    yield start
    for each in made:
        each.kill()
        assert each.has_ended


def test_a_rank_of_this_machine_is_this_interpreter():
    assert rank_command(HERE, "/elsewhere") == [
        *(sys.executable, "-P", "-m", "llm_mlx_promptcache.machines")
    ]


@pytest.mark.parametrize("python", ["/usr/bin/python3", "/My Apps/p'y/bin/python", "a; touch $x"])
def test_another_machines_rank_is_words_for_its_shell_that_it_reads_as_they_are(python):
    *options, host, words = rank_command(Machine("me@mac1"), python)
    assert (options[0], options[-1], host) == ("ssh", "--", "me@mac1")
    assert "BatchMode=yes" in options
    shown = f"printf '%s\\n' {words}"  # what sshd hands to the user's shell, which must not run it
    told = subprocess.run(["sh", "-c", shown], capture_output=True, text=True).stdout.splitlines()
    assert told == [python, "-P", "-m", "llm_mlx_promptcache.machines"] == shlex.split(words)


def test_the_secret_is_in_no_argument_and_in_no_environment(rank, tmp_path):
    process = rank("hello")
    assert process.hello(soon()) == {"versions": {}}
    told = json.loads((tmp_path / "record").read_text())
    assert told["order"]["secret"] == RANK.secret
    assert RANK.secret not in json.dumps([told["argv"], told["environ"]])


def test_an_environment_of_a_rank_has_no_secrets_of_the_user(rank, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    rank("hello").hello(soon())
    assert "sk-secret" not in (tmp_path / "record").read_text()


def test_what_a_login_shell_says_is_passed_over(rank):
    assert rank("shell noise").hello(soon()) == {"versions": {}}


def test_one_that_ends_is_told_by_its_host_in_its_last_words(rank):
    with pytest.raises(RankFailed) as error:
        rank("dies").hello(soon())
    assert str(error.value) == "127.0.0.1: it ended (status 3): it has no model x"
    with pytest.raises(RankFailed, match=r"127.0.0.1: it was killed \(signal 9\)$"):
        rank("killed").hello(soon())


@pytest.mark.parametrize("kind", ["deaf", "endless noise"])
def test_one_that_says_nothing_of_itself_is_not_waited_for(rank, kind):
    with pytest.raises(RankFailed, match=r"127\.0\.0\.1: it said nothing in time"):
        rank(kind).hello(time.monotonic() + 0.5)


def test_its_warnings_are_ours_by_its_host(rank, caplog, capfd):
    process = rank("warns")
    process.close()
    process.end(LONG)
    assert caplog.messages == ["127.0.0.1: /its/cache can't be written [31m"]
    assert "no warning" in capfd.readouterr().err


def test_one_that_can_not_be_started_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(rank_process, "rank_command", lambda *_: [str(tmp_path / "gone")])
    with pytest.raises(RankFailed, match=r"can't be started \(No such file or directory\)"):
        RankProcess(HERE, RANK, sys.executable)


def test_a_rank_ends_when_its_standard_input_does(rank):
    process = rank("hello")
    process.hello(soon())
    process.close()
    process.end(LONG)
    assert process.has_ended


def test_one_that_does_not_end_is_ended(rank):
    process = rank("deaf")
    process.end(0.0)
    assert process.has_ended


def started(line, environment):
    """A real rank, given this line."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "llm_mlx_promptcache.machines"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    process.stdin.write(line)
    process.stdin.flush()
    return process


def test_a_real_rank_says_what_is_wrong_and_ends(tmp_path):
    environment = {**os.environ, "LLM_MLX_CACHED_HOME": str(tmp_path), "HF_HOME": str(tmp_path)}
    from llm_mlx_promptcache.machines.orders import order_to_line

    for line, status, words in (
        (b"{}\n", 1, "what it was told is no order of a rank"),
        (order_to_line(RANK), 1, "it has no model owner/model; llm mlx-cached download"),
    ):
        process = started(line, environment)
        try:
            assert process.wait(LONG) == status
            errors = process.stderr.read().decode()
        finally:
            process.kill()
            process.communicate()
        assert errors.startswith(f"llm-mlx-promptcache: {words}")
        assert len(errors.splitlines()) == 1
