"""Ctrl-C while a model loads, in the real `llm`: it ends at the load's next step, with one line."""

import os
import signal
import subprocess

import pytest
from forks import LLM

# In every process of the user: a load that has no end of its own.
SITE = """
import importlib.abc
import importlib.util
import sys
import time


class Endless(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "llm_mlx_promptcache.models.loading":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            module.load_model = load_model

        spec.loader.exec_module = exec_module
        return spec


def load_model(reference, report=None, step=lambda: None):
    with open({begun!r}, "w"):  # until who waits for it has opened it too
        pass
    while True:
        step()
        time.sleep(0.001)


sys.meta_path.insert(0, Endless())
"""


@pytest.fixture(params=["here", "hosted"])
def user(request, tiny_llama):
    """A user with a model, with a host and without."""
    home = request.getfixturevalue("bare_home" if request.param == "here" else "bare_hosted_home")
    home.ours("default", str(tiny_llama()))
    return home


@pytest.mark.parametrize("more", [(), ("--async",)], ids=["sync", "async"])
def test_c8_ctrl_c_while_a_model_loads_ends_llm(user, tmp_path, more):
    begun = tmp_path / "begun"
    os.mkfifo(begun)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE.format(begun=str(begun)))
    process = subprocess.Popen(
        [LLM, "-m", "mlx-cached", "Hello", *more],
        env=user.environment(PYTHONPATH=str(tmp_path / "site")),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    begun.read_text()
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert (out, error) == ("", "stopped before the answer began\n")
    assert user.llm("logs", "list", "--json")[0] == "[]"
