"""One folder has one spelling: through links, and where names are found in any case."""

import os
import unicodedata
from pathlib import Path

import pytest
from folding import fold

from llm_mlx_promptcache.engine import pool
from llm_mlx_promptcache.host.hello import hello
from llm_mlx_promptcache.host.place import host_place
from llm_mlx_promptcache.models.names import resolve
from llm_mlx_promptcache.models.paths import real_path

COMPOSED = unicodedata.normalize("NFC", "Mod\u00e8le")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose file system folds case, with a model's folder deep in it."""
    root = tmp_path.resolve() / "Disk"
    (root / "Models" / COMPOSED).mkdir(parents=True)
    fold(monkeypatch, root)
    return root


def spellings(path):
    """The ways in which users write what follows the folder that folds."""
    inside = str(path)
    yield from (inside, inside.lower(), inside.upper(), inside.swapcase())
    yield unicodedata.normalize("NFD", inside)


def test_a_folder_is_spelled_as_it_is_stored(folder):
    stored = folder / "Models" / COMPOSED
    for spelling in spellings(Path("Models", COMPOSED)):
        assert real_path(folder / spelling) == stored
    assert real_path(folder / "models" / "Nothing" / "x") == folder / "Models" / "Nothing" / "x"


def test_where_case_is_kept_apart_names_stay(tmp_path):
    upper, lower = tmp_path / "Model", tmp_path / "mODEL"
    upper.mkdir()
    if lower.exists():
        pytest.skip("this file system folds case")
    assert real_path(lower) == lower.resolve()
    lower.mkdir()
    assert (real_path(upper), real_path(lower)) == (upper.resolve(), lower.resolve())
    lower.rmdir()
    lower.symlink_to(upper)
    assert real_path(lower) == real_path(upper) == upper.resolve()


def test_a_folder_that_nobody_may_list_keeps_its_spelling(folder, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "not allowed", path)

    monkeypatch.setattr(os, "scandir", forbidden)
    assert real_path(folder / "models") == folder / "models"


def test_links_that_go_round_are_no_error(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert real_path(tmp_path / "a").parent == tmp_path.resolve()


def test_one_model_has_one_engine_however_its_folder_is_written(folder):
    try:
        found = {
            resolve(str(folder / one)).reference for one in spellings(Path("Models", COMPOSED))
        }
        assert found == {str(folder / "Models" / COMPOSED)}
        engines = {
            pool.engine_for(str(folder / one)) for one in spellings(Path("models", COMPOSED))
        }
        assert len(engines) == 1
    finally:
        pool.close_engines()


def test_one_home_has_one_host_however_it_is_written(folder, monkeypatch):
    deep = "H" * 90  # too long for a socket: its place is elsewhere, and bears a digest
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    places, hellos = set(), []
    for home, hub in ((deep, "Models"), (deep.lower(), "models")):
        monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(folder / home))
        monkeypatch.setenv("HF_HOME", str(folder / hub))
        place = host_place()
        places.add(place)
        hellos.append(hello(place))
    (place,) = places
    assert "HHH" not in str(place.folder)
    assert hellos[0] == hellos[1]


def test_a_hubs_model_is_one_by_whatever_case(folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    (folder / "models--Some-Owner--Small-4bit").mkdir()
    for name in ("some-owner/small-4bit", "Some-Owner/Small-4bit", "SOME-OWNER/SMALL-4BIT"):
        assert resolve(name).reference == "Some-Owner/Small-4bit"
    assert resolve("some-owner/other").reference == "some-owner/other"
