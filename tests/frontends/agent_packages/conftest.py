"""Agents of other packages: run by test_agent_packages.py, in an environment that has them."""

import pytest

pytest.register_assert_rewrite("driven_agents")
