"""The build that runs: our own files and what we stand on; another one is another host's."""

import dataclasses
import functools
import os
import shutil
import sys
from importlib.metadata import version

import pytest

from llm_mlx_promptcache.host import hello as hellos
from llm_mlx_promptcache.host.hello import build, hello
from llm_mlx_promptcache.host.place import HostUnavailable


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of our own files, as an upgrade finds them."""
    folder = tmp_path / "package"
    shutil.copytree(hellos._PACKAGE / "host", folder / "host")
    monkeypatch.setattr(hellos, "_PACKAGE", folder)
    return folder


def test_a_changed_file_is_another_build(package):
    before = build()
    path = package / "host" / "start.py"
    found = path.stat()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    changed = build()
    path.write_bytes(path.read_bytes() + b"\n")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    longer = build()
    path.rename(path.with_name("begin.py"))
    moved = build()
    digests = {b.digest for b in (before, changed, longer, moved)}
    assert len(digests) == 4
    assert before.package == moved.package
    assert build() == moved


def test_a_process_whose_package_was_replaced_under_it_has_no_host(place, package, monkeypatch):
    """Other code than it runs would read its words: it can neither find nor start a host."""
    monkeypatch.setattr(hellos, "build_that_runs", functools.cache(build))
    assert hello(place)["build"] == dataclasses.asdict(build())
    path = package / "host" / "start.py"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(HostUnavailable, match="start it anew"):
        hello(place)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder in which mlx is installed, and nothing else anywhere."""
    folder = tmp_path / "site-packages"
    (folder / "mlx-0.32.4.dist-info").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", ["", str(folder), str(tmp_path / "python311.zip")])
    return folder


def test_versions_are_those_that_are_installed(monkeypatch):
    told = build()
    for name in ("mlx", "mlx-lm", "llm-mlx-promptcache"):
        assert version(name) in dataclasses.astuple(told)
    assert {name for name, _ in hellos._installed()} >= {"transformers", "numpy", "jinja2"}


@pytest.mark.parametrize("name", ["transformers", "Jinja2", "mlx_metal", "numpy"])
def test_another_version_of_what_we_stand_on_is_another_build(site, package, name):
    without = build()
    (site / f"{name}-1.0.dist-info").mkdir()
    first = build()
    (site / f"{name}-1.0.dist-info").rename(site / f"{name}-1.1.dist-info")
    assert len({b.digest for b in (without, first, build())}) == 3
    assert first.mlx == "0.32.4"
    assert first.mlx_lm == ""


def test_what_else_is_installed_is_the_same_build(site, package):
    before = build()
    (site / "pip-26.0.dist-info").mkdir()
    (site / "mlx").mkdir()
    (site / "__pycache__").mkdir()
    assert build() == before


def test_what_lies_where_a_client_runs_is_not_what_is_installed(
    site, package, tmp_path, monkeypatch
):
    before = build()
    (tmp_path / "numpy-1.0.egg-info").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert build() == before
