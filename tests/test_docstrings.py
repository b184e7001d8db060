"""Docstrings open with a noun or an imperative verb in the rooms that were read for it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Folders and files, relative to the repository; a room is added once all its docstrings are read.
READ_ROOMS = (
    "benchmarks",
    "docs",
    "examples",
    "langchain_adapter",
    "langchain_mlx_cached",
    "llm_mlx_promptcache",
    "tests",
)
CLAUSES = {"how", "what", "when", "where", "whether", "which", "who", "whom", "whose", "why"}
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def clauses(source):
    """Line and text of each docstring in `source` that opens with a clause ("What is ...")."""
    for node in ast.walk(ast.parse(source)):
        text = ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None
        if text and text.split()[0].strip(",.:;").lower() in CLAUSES:
            yield node.body[0].lineno, text.partition("\n")[0]


@pytest.mark.parametrize("room", READ_ROOMS)
def test_docstrings_open_with_a_noun_or_a_verb(room):
    place = ROOT / room
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    assert files, f"{room} has no files"
    found = [
        f"{path.relative_to(ROOT)}:{line} {text}"
        for path in files
        for line, text in clauses(path.read_text())
    ]
    assert not found, "\n".join(found)


def test_each_way_to_open_with_a_clause_is_seen():
    source = '''"""What it is."""
class Room:
    """Where it lies."""
    async def is_open(self):
        """Whether it is open.

        How it is told.
        """
def count():
    """The spans, and how many."""
'''
    assert [text for _, text in clauses(source)] == [
        "What it is.",
        "Where it lies.",
        "Whether it is open.",
    ]
