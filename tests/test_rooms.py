"""The rule of arrows: front ends -> engine -> cache, chat; nobody imports a front end."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "llm_mlx_promptcache"
FRONT_ENDS = {"plugin", "commands", "llm_adapter", "langchain_adapter"}
FORBIDDEN = {
    "cache": FRONT_ENDS | {"engine", "chat", "config", "llm", "langchain_core", "transformers"},
    "chat": FRONT_ENDS | {"engine", "cache", "config", "llm", "langchain_core", "mlx", "mlx_lm"},
    "engine": FRONT_ENDS | {"llm", "langchain_core"},
    "models": FRONT_ENDS | {"engine", "llm", "langchain_core"},
    "llm_adapter": {"plugin", "commands", "langchain_adapter", "langchain_core"},
}
TENSORS = {
    "device.py",
    "layers.py",
    "layer_kinds.py",
    "own_state.py",
    "pieces.py",
    "restore.py",
    "span_file.py",
    "span_header.py",
}


def imported(path):
    """The names of rooms and packages that a file imports, at its top or anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level <= 1:
            parts = (node.module or "").split(".")
            yield parts[1] if parts[0] == PACKAGE and len(parts) > 1 else parts[0]
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or node.names[0].name).split(".")[0]


@pytest.mark.parametrize("room", FORBIDDEN)
def test_arrows_between_rooms_run_one_way(room):
    files = list((ROOT / PACKAGE / room).glob("*.py"))
    assert len(files) > 2
    for path in files:
        assert FORBIDDEN[room].isdisjoint(imported(path)), path


def test_only_the_files_that_say_so_know_tensors():
    files = (ROOT / PACKAGE / "cache").glob("*.py")
    assert {p.name for p in files if {"mlx", "mlx_lm"} & set(imported(p))} == TENSORS


def test_nobody_imports_a_front_end():
    for path in (ROOT / PACKAGE).rglob("*.py"):
        room = path.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py")
        if room not in FRONT_ENDS:
            assert FRONT_ENDS.isdisjoint(imported(path)), path


# `compat.py` has mlx-lm's own names. The others go when their rooms are done.
SHARED_NAMES = {"PromptTrie", "CacheOrder"} | {
    *("Entry", "Marks", "Part", "Row", "State", "Work", "Answer"),
}


def test_no_two_classes_have_one_name():
    found = Counter(
        node.name.lstrip("_")
        for package in (PACKAGE, "langchain_adapter")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
    )
    assert {name for name, count in found.items() if count > 1} <= SHARED_NAMES
