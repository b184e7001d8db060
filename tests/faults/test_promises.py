"""Promises and faults in the docs name tests that are there, and say which are long."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
NAMED = re.compile(r"`(test_\w+)`(\*?)")


def written():
    """Every test function, with True if it is marked as part of the soak alone."""
    found = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marks = {ast.unparse(mark) for mark in node.decorator_list}
                found[node.name] = "pytest.mark.soak" in marks
    return found


def rows(page, key):
    """The rows of a page's table whose first column looks like that, with the tests they name."""
    text = (ROOT / page).read_text()
    lines = re.findall(rf"^\| ({key}) \|(.*)$", text, re.MULTILINE)
    return {number: NAMED.findall(rest) for number, rest in lines}


def test_each_promise_names_tests_that_always_run():
    promised, there = rows("docs/reliability.md", r"P\d"), written()
    assert list(promised) == [f"P{n}" for n in range(1, 9)]
    for promise, named in promised.items():
        assert named, promise
        assert [name for name, _ in named if name not in there] == []
        assert any(not there[name] for name, _ in named), f"{promise} is held by the soak alone"


def test_each_fault_names_tests_that_inject_it():
    faults, there = rows("docs/disk.md", r"\d+"), written()
    assert list(faults) == [str(n) for n in range(1, 41)]
    for fault, named in faults.items():
        assert named, fault
        for name, star in named:
            assert name in there, f"fault {fault} names {name}"
            assert there[name] == bool(star), f"{name} has a star where it is long"


@pytest.mark.parametrize("page", ["SECURITY.md", "docs/privacy.md"])
def test_other_pages_name_no_test_that_is_gone(page):
    there = written()
    assert [n for n, _ in NAMED.findall((ROOT / page).read_text()) if n not in there] == []
