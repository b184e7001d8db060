"""Other plugins of llm: run by test_llm_plugins.py, in an environment that has them."""

import pytest
from real_families import Played, every_family
from scripted_model import RUNS

from llm_mlx_promptcache.config import HOME_VARIABLE
from llm_mlx_promptcache.engine.pool import close_engines

pytest.register_assert_rewrite("driven_llm", "driven_plugins")

# One that reasons and drops it later, one that changes nothing, and one whose arguments are tagged.
FAMILIES = ("Qwen3", "Llama 3.1", "Qwen3.5, 3.6")


@pytest.fixture(params=[one for one in every_family() if one.id in FAMILIES])
def played(request):
    """A family, as its models write."""
    return Played(request.param)


@pytest.fixture
def user_of(bare_home, tmp_path, played):
    """`user_of(answers)`: someone whose model gives these answers, by cue."""
    from driven_plugins import PluginUser

    folder = tmp_path / "user"
    folder.mkdir()
    return lambda answers: PluginUser(bare_home, folder, played, answers)


@pytest.fixture
def datasette_user(user_of, monkeypatch):
    """The same where the model runs in this process, as in Datasette's."""

    def made(answers):
        user = user_of(answers)
        variables = user.environment()
        for name in ("LLM_USER_PATH", HOME_VARIABLE, RUNS):
            monkeypatch.setenv(name, variables[name])
        return user

    yield made
    close_engines()
