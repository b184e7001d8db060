"""The real `llm` command: off means off, clear means clear, and the exit status is 0."""

import json
import os
import signal
import subprocess
from pathlib import Path

import forks
import pytest
from click.testing import CliRunner
from llm.cli import cli as llm_command

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.commands import mlx_cached

ASK = ("-m", "mlx-cached", "Hello and more of it", "-o", "max_tokens", "24")


class Home:
    def __init__(self, folder):
        self.folder = folder
        self.store = folder / "mlx" / "cache"
        self.environment = {
            **os.environ,
            "LLM_USER_PATH": str(folder / "llm"),
            "LLM_MLX_CACHED_HOME": str(folder / "mlx"),
        }

    def start(self, *arguments):
        """`llm` in a new interpreter, for tests of its exit."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        return subprocess.Popen([forks.LLM, *arguments], env=self.environment, **pipes)

    def llm(self, *arguments):
        """`llm` in a fork, for tests of its output and the store."""
        given = {"env": self.environment, "stdin": subprocess.DEVNULL, "timeout": 120}
        done = subprocess.run([forks.llm(), *arguments], **given, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout.strip()

    def ours(self, *arguments, status=0):
        """`llm mlx-cached ...` in this process, which is faster."""
        done = CliRunner().invoke(mlx_cached, arguments, env=self.environment)
        assert done.exit_code == status, done.output
        return done.output.strip()

    def logged(self):
        """The last answer's entry in llm's log, read in this process, which is faster."""
        arguments = ["logs", "list", "--json", "-n", "1"]
        done = CliRunner().invoke(llm_command, arguments, env=self.environment)
        assert done.exit_code == 0, done.output
        (entry,) = json.loads(done.output)
        return entry

    def cached(self):
        return json.loads(self.logged()["token_details"])["cached"]

    def spans(self):
        return DiskStore(self.store).stats()["spans"]


@pytest.fixture
def home(tmp_path, tiny_llama):
    made = Home(tmp_path)
    made.ours("default", str(tiny_llama()))
    return made


def test_off_means_off(home):
    home.llm("logs", "off")
    home.llm(*ASK)
    assert home.spans() == 0
    home.llm("logs", "on")
    home.llm(*ASK, "-o", "cache", "false")
    assert home.spans() == 0
    home.environment["LLM_MLX_CACHED_DISK"] = "0"
    home.llm(*ASK)
    del home.environment["LLM_MLX_CACHED_DISK"]
    assert home.spans() == 0
    home.llm(*ASK)
    assert home.spans() > 0


def test_stats_check_and_clear(home, tiny_llama):
    home.llm(*ASK)
    first = home.ours("default")
    assert Path(first).name in home.ours("stats")
    assert home.ours("check") == "all is well"
    home.ours("default", str(tiny_llama(seed=3)))
    home.llm(*ASK)
    both = home.spans()
    home.ours("clear", "--older-than", "7d")
    assert home.spans() == both
    home.ours("clear", "--model", first)
    assert 0 < home.spans() < both
    home.ours("clear", "--older-than", "soon", status=1)
    next((home.store / "spans").glob("*.safetensors")).write_bytes(b"damaged")
    assert "can't be read" in home.ours("check", status=1)
    home.ours("check", "--fix")
    assert home.ours("check") == "all is well"
    foreign = home.store / "spans" / "mine"
    foreign.write_text("mine")
    home.ours("clear")
    left = {p.name for p in home.store.rglob("*") if p.is_file()}
    kept = {"index.sqlite", "index.sqlite-wal", "index.sqlite-shm", "facts.json", "CACHEDIR.TAG"}
    assert left - kept == {"mine"}


def test_p4_a_cache_folder_that_cannot_be_made_is_memory_only(home):
    (home.folder / "mlx" / "cache").write_text("a file where the folder should be")
    process = home.start(*ASK)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert out.strip()
    off, cut = error.decode().splitlines()
    assert "is off for now" in off
    assert cut.startswith("the answer was cut")
    assert (home.folder / "mlx" / "cache").read_text().startswith("a file")


def statuses(home, count):
    found = []
    for _ in range(count):
        process = home.start(*ASK[:-1], "8")
        process.communicate(timeout=120)
        found.append(process.returncode)
    return found


def test_exit_status_is_0(home):
    assert statuses(home, 3) == [0] * 3
    assert DiskStore(home.store).check() == []


@pytest.mark.soak
def test_exit_status_is_0_in_fifty_of_fifty(home):
    assert statuses(home, 50) == [0] * 50


def interrupted(home):
    process = home.start(*ASK[:-1], "600")
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    return process.returncode


def ended(home):
    process = home.start(*ASK[:-1], "600")
    process.stdout.read(1)
    process.terminate()
    process.communicate(timeout=60)
    return process.returncode


def closed(home):
    process = home.start(*ASK[:-1], "600")
    process.stdout.read(1)
    process.stdout.close()
    process.wait(timeout=60)
    process.stderr.close()
    return process.returncode


@pytest.mark.parametrize("break_off", [interrupted, ended, closed])
def test_an_answer_broken_off_leaves_nothing_half_stored(home, break_off):
    assert break_off(home) not in (-signal.SIGABRT, -signal.SIGSEGV, 134, 139)
    store = DiskStore(home.store)
    store.sweep(every=True)
    assert store.check() == []
    home.llm(*ASK)
    warm = home.logged()["response"]
    home.llm(*ASK, "-o", "cache", "false")
    assert home.logged()["response"] == warm


def test_other_weights_under_the_same_name_are_a_miss(home):
    home.llm(*ASK)
    home.llm(*ASK)
    assert home.cached() > 0
    weights = next(Path(home.ours("default")).glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-400] ^= 0x01
    weights.write_bytes(content)
    os.utime(weights, ns=(1, 1))  # a clock of coarse steps may not have moved
    home.llm(*ASK)
    assert home.cached() == 0
