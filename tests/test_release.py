"""A release: version, changelog and tag agree. `make release-check TAG=v1.2.3` asks for all."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
TOP = re.search(r"^## (\S+) \((.*)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
TAG = os.environ.get("RELEASE_TAG")
released = pytest.mark.skipif(TAG is None, reason="make release-check TAG=... asks it")


def git(*arguments):
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_changelog_begins_with_this_version():
    assert TOP is not None
    assert TOP[1] == VERSION
    assert TOP[2] == "unreleased" or re.fullmatch(r"20\d\d-\d\d-\d\d", TOP[2])


@released
def test_the_changelog_says_when():
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", TOP[2]), f"'{TOP[2]}' is no date"


@released
def test_the_tag_is_this_version_s_and_this_commit_s():
    assert f"v{VERSION}" == TAG
    assert git("rev-parse", f"{TAG}^{{commit}}") == git("rev-parse", "HEAD")


@released
def test_nothing_is_released_that_is_not_committed():
    assert git("status", "--porcelain") == ""
