"""A user's script with ChatMLXCached passes mypy's strict checks, without any plugin."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
def test_a_users_script_passes_mypy_strict_without_plugins(tmp_path):
    """It states the types of what it gets, and marks its mistakes, which have to be seen."""
    checked = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary"]
    # What it knows of packages that have not changed lasts from one run to the next.
    cache = HERE.parents[1] / ".mypy_cache" / "typed_user"
    done = subprocess.run(
        [*checked, "--cache-dir", cache, HERE / "typed_user.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.returncode) == ("", 0), done.stderr
