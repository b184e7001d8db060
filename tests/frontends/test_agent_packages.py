"""Packages that agents are built with, driven in an environment that has them over this one's.

`make agent-packages` runs these; each installs one package, outside the tree, and takes minutes.
What is done with a package is in agent_packages/.
"""

import subprocess
import sysconfig
import venv
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.soak

HERE = Path(__file__).parent


class Package(NamedTuple):
    """A package, the versions that its tests are written for, and warnings of its own."""

    name: str
    versions: str
    warns: tuple[str, ...] = ()


PACKAGES = (
    Package("deepagents", ">=0.7,<0.8"),
    Package("langgraph-supervisor", ">=0.0.31,<0.1"),
    Package("langgraph-swarm", ">=0.1,<0.2"),
    Package("langmem", ">=0.0.30,<0.1", ("Importing Send from langgraph.constants",)),
    Package("langchain-mcp-adapters", ">=0.3,<0.4"),
)


@pytest.fixture(params=PACKAGES, ids=[package.name for package in PACKAGES])
def installed(request, tmp_path):
    """A package, and the Python of an environment that has it and all that this one has."""
    package = request.param
    folder = tmp_path / "env"
    venv.create(folder, with_pip=True)
    inner = sysconfig.get_path("purelib", vars={"base": str(folder)})
    over = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (Path(inner) / "base.pth").write_text(over)
    python = str(folder / "bin" / "python")
    wanted = f"{package.name}{package.versions}"
    done = run(python, "-m", "pip", "install", "--quiet", wanted)
    if done.returncode:
        why = (done.stderr.strip() or "pip said nothing").splitlines()[-1]
        pytest.skip(f"{wanted} can't be installed here: {why}")
    return package, python


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_agents_are_built_with(installed, tmp_path):
    package, python = installed
    driven = HERE / "agent_packages" / f"drive_{package.name.replace('-', '_')}.py"
    own = [option for message in package.warns for option in ("-W", f"ignore:{message}")]
    told = ["-q", "-rP", "--tb=short", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'tests'}"]
    done = run(python, "-m", "pytest", *told, *own, str(driven))
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout[-5000:]}\n{done.stderr[-3000:]}"
    counted = [line for line in done.stdout.splitlines() if " prefilled, " in line]
    assert counted
    print("\n".join(counted))
