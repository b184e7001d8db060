"""Systems without /proc and all else that only Linux has: all works, with a host and without."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
LIMIT = ("-o", "max_tokens", "4")


@pytest.fixture
def elsewhere(tmp_path):
    """The variables of a process that runs on such a system, and the file in which each says so."""
    told = tmp_path / "processes"
    told.touch()
    folders = (TESTS / "elsewhere", TESTS / "faults")
    return {
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "LLM_MLX_CACHED_ELSEWHERE": str(told),
    }


def run(code, *arguments, variables):
    """Run code there; returns its output."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


PLAYED = """
import os, socket, sys
found = [name for name in ("posix_fadvise", "sched_getaffinity", "fdatasync", "O_TMPFILE")
         if hasattr(os, name)]
print(found, hasattr(socket, "SO_PEERCRED"), os.path.exists("/proc/self/fd"))
try:
    open("/proc/self/stat")
except FileNotFoundError as error:
    print(error.filename)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="this is elsewhere")
def test_such_a_system_is_played(elsewhere):
    assert run(PLAYED, variables=elsewhere) == "[] False False\n/proc/self/stat\n"


STORED = """
import sys
from pathlib import Path
import worlds
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.models import blas
from llm_mlx_promptcache.commands.bench import machine

folder = Path(sys.argv[1])
worlds.work(folder, 3, 12)
store = DiskStore(folder)
ids = worlds.turns(store, 8)
print(worlds.compacted(store), worlds.get(DiskStore(folder), ids), store.check())
blas.find()
print(bool(machine()["processor"]))
"""


def test_what_is_stored_there_is_packed_read_and_verified(elsewhere, tmp_path):
    found = run(STORED, tmp_path / "cache", variables=elsewhere)
    assert found == "1 96 []\nTrue\n"


def test_prompts_are_answered_there_by_a_host_and_without_one(
    bare_hosted_home, tiny_llama, elsewhere, tmp_path
):
    home = bare_hosted_home
    home.ours("default", str(tiny_llama()))
    answers = [home.llm("-m", "mlx-cached", "Hello", *LIMIT, **elsewhere) for _ in range(2)]
    assert answers[0] == answers[1]
    assert answers[0][1].startswith("the answer was cut after 4 tokens")
    assert home.last()["details"]["prefilled"] == 1
    host = json.loads(home.llm("mlx-cached", "ps", "--json", **elsewhere)[0])
    assert host["models"]
    assert home.llm("mlx-cached", "stop", **elsewhere)[0].endswith("has ended")
    alone = home.llm("-m", "mlx-cached", "Hello", *LIMIT, LLM_MLX_CACHED_KEEP="0", **elsewhere)
    assert alone == answers[0]
    processes = [line.split()[0] for line in (tmp_path / "processes").read_text().splitlines()]
    if sys.platform == "linux":
        assert str(host["pid"]) in processes  # it was elsewhere too
