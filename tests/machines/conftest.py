"""Models over several ranks of this machine, one of them behind an ssh of the tests' own."""

import sys
import tempfile
from pathlib import Path

import pytest
from served_homes import ServedHome

# As sshd does: the words after the host are one text for the user's shell.
STAND_IN_SSH = """#!{python}
import os, sys
at = sys.argv.index("--")
host, *words = sys.argv[at + 1:]
with open({record!r}, "a") as file:
    print(host, *words, sep="\\t", file=file)
if host == "unknown":
    sys.exit("ssh: Could not resolve hostname unknown: Name or service not known")
print("Welcome to", host, flush=True)
os.execv("/bin/sh", ["sh", "-c", "exec " + " ".join(words)])
"""


@pytest.fixture(scope="module")
def home(tiny_llama):
    """A user's home with a short path, a tiny model, and an ssh to machines that are this one."""
    with tempfile.TemporaryDirectory(prefix="m", dir="/tmp") as folder:
        made = ServedHome(Path(folder), tiny_llama())
        made.write_ssh(STAND_IN_SSH.format(python=sys.executable, record=str(made.ssh_log)))
        yield made
        made.end()


@pytest.fixture(scope="module")
def tiny(home):
    """`mlx-cached/tiny`, served by two ranks, the second one behind ssh; started once."""
    home.serve("tiny")
    return home
