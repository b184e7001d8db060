"""The stand-in for `llm` is `llm`: its output and input, its files, its signals, its end."""

import json
import os
import signal
import subprocess
import sys

import forks
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there the real llm runs")


@pytest.fixture
def run(tmp_path):
    """`run(*arguments, program=)`: status, stdout and stderr of `llm` in a folder of its own."""

    def run(*arguments, program=None, **variables):
        done = subprocess.run(
            [program or forks.llm(), *arguments],
            env={**os.environ, "LLM_USER_PATH": str(tmp_path / "llm"), **variables},
            cwd=tmp_path,
            input="Given.",
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.parametrize(
    "arguments",
    [
        ("models", "list"),
        ("-m", "nothing", "Hello"),
        ("no-such-command",),
    ],
)
def test_it_says_and_ends_as_the_real_one(run, arguments):
    assert run(*arguments) == run(*arguments, program=forks.LLM)


def test_a_fork_is_a_process_of_its_own(run, tmp_path):
    """Its files and folder are those of who asked, and nothing of it is left in the next one."""
    run("keys", "set", "first", "--value", "secret")
    assert json.loads((tmp_path / "llm" / "keys.json").read_text())["first"] == "secret"
    for name in ("one", "two"):
        status, out, _ = run("keys", "path", LLM_USER_PATH=str(tmp_path / name))
        assert (status, out.strip()) == (0, str(tmp_path / name / "keys.json"))


def test_another_interpreter_is_the_real_one(run):
    """An option read as an interpreter starts can't be given to a fork."""
    assert run("keys", "path", PYTHONPROFILEIMPORTTIME="1")[2].startswith("import time:")
    assert run("keys", "path")[2] == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_the_fork(tmp_path, number):
    """It waits for words that never come: however it is ended, nothing of it goes on."""
    statuses = []
    for program in (forks.llm(), forks.LLM):
        started = subprocess.Popen(
            [program, "chat", "-m", "mlx-cached"],
            env={**os.environ, "LLM_USER_PATH": str(tmp_path / "llm")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert started.stdout.read(1) == b"C"  # Chatting with ...
        started.send_signal(number)
        started.stdout.read()  # to the end: nobody has it open any more
        statuses.append(started.wait())
        started.stdin.close()
        started.stdout.close()
    assert statuses[0] == statuses[1] != 0
