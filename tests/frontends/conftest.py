"""The real `llm` command in fresh processes, over the user's copy of the real default model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llm_mlx_promptcache.config import data_folder
from llm_mlx_promptcache.engine.default_model import ensure_default_model

LLM = str(Path(sys.executable).with_name("llm"))


class Home:
    """A user's folders: llm's own, our cache's, and the models, which may be another's."""

    def __init__(self, folder, data):
        self.folder = folder
        (folder / "mlx").mkdir(parents=True, exist_ok=True)
        if data is not None:
            (folder / "mlx" / "data").symlink_to(data)

    def llm(self, *arguments, status=0, stdin=""):
        """Run `llm` and return what it wrote to stdout and stderr."""
        environment = {
            **os.environ,
            "LLM_USER_PATH": str(self.folder / "llm"),
            "LLM_MLX_CACHED_HOME": str(self.folder / "mlx"),
        }
        done = subprocess.run(
            [LLM, *arguments], env=environment, input=stdin, capture_output=True, text=True
        )
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout.strip(), done.stderr.strip()

    def last(self):
        """What llm logged of the last answer, with its token details unpacked."""
        (entry,) = json.loads(self.llm("logs", "list", "--json", "-n", "1")[0])
        return entry | {"details": json.loads(entry["token_details"])}

    def copied_to(self, folder):
        """The same home at another place."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Home(folder, None)


@pytest.fixture(scope="session")
def real_data_folder():
    """The user's own data folder, with the default model in it: fetched once a machine."""
    ensure_default_model(data_folder())
    return data_folder()


@pytest.fixture
def home(tmp_path, real_data_folder):
    """A user who has the default model and has never asked anything."""
    return Home(tmp_path / "home", real_data_folder)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """An empty cache for what this process runs, and engines that end with the test."""
    from llm_mlx_promptcache.engine.pool import close_engines

    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path / "own"))
    yield tmp_path / "own"
    close_engines()


@pytest.fixture
def bare_home(tmp_path):
    """A user who has no model yet."""
    return Home(tmp_path / "home", None)
