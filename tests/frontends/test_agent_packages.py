"""Packages that agents are built with, driven in an environment that has them over this one's.

`make agent-packages` runs these; each installs one package, outside the tree, and takes minutes.
What is done with a package is in agent_packages/.
"""

from pathlib import Path

import pytest
from package_environments import Package, drive, installed

pytestmark = pytest.mark.soak

PACKAGES = (
    Package("deepagents", ">=0.7,<0.8"),
    Package("langgraph-supervisor", ">=0.0.31,<0.1"),
    Package("langgraph-swarm", ">=0.1,<0.2"),
    Package("langmem", ">=0.0.30,<0.1", ("Importing Send from langgraph.constants",)),
    Package("langchain-mcp-adapters", ">=0.3,<0.4"),
)


@pytest.mark.parametrize("package", PACKAGES, ids=[package.name for package in PACKAGES])
def test_what_agents_are_built_with(package, tmp_path):
    python = installed(package, tmp_path / "env")
    drive(package, python, Path(__file__).parent / "agent_packages", tmp_path / "tests")
