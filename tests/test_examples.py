"""The programs in examples/, each as a user runs it, over a tiny model."""

import os
import re
import subprocess
from pathlib import Path

import forks
import pytest

from llm_mlx_promptcache.config import Settings, save_settings

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run(tmp_path, monkeypatch, tiny_llama):
    """`run(name)`: the tokens and the reused ones among them that each line of a program tells."""
    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path / "mlx"))
    model = tiny_llama(context=8192)
    save_settings(Settings(default_model=str(model)))
    own = {"LLM_USER_PATH": str(tmp_path / "llm"), "PYTHONPATH": str(EXAMPLES.parent)}

    def run(name):
        # llm knows a model of the user's by its name, all others take its folder.
        given = [] if name == "llm_from_python" else [str(model)]
        done = subprocess.run(
            [forks.python(), EXAMPLES / f"{name}.py", *given],
            cwd=tmp_path,
            env={**os.environ, **own},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        found = re.findall(r"^(\d+) tokens, (\d+) of them reused$", done.stdout, re.MULTILINE)
        return [tuple(map(int, figures)) for figures in found]

    return run


def test_every_example_is_tried():
    tried = {"llm_from_python", "agent", "graph", "core"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tried


def test_llm_from_python(run):
    (first, nothing), (_, reused) = run("llm_from_python")
    assert nothing == 0
    assert reused > first


def test_an_agent(run):
    (first, nothing), (_, reused) = run("agent")
    assert nothing == 0
    assert reused > first


def test_a_graph_goes_on_in_another_process(run):
    ((first, nothing),) = run("graph")
    ((_, reused),) = run("graph")
    assert nothing == 0
    assert reused > first


def test_the_core_alone(run):
    (first, nothing), (_, went_on), (_, began_as) = run("core")
    assert nothing == 0
    assert went_on > first
    assert 0 < began_as < first
