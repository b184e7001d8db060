"""README and docs name only what exists: commands, options, variables, targets, tests, files."""

import re
from pathlib import Path

import click
import pytest

from llm_mlx_promptcache.commands import mlx_cached

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
OURS = ("llm_mlx_promptcache", "langchain_adapter", "langchain_mlx_cached")
# Where a page's path to a file may begin.
ROOMS = ("", "llm_mlx_promptcache", "llm_mlx_promptcache/cache", "langchain_adapter", "tests")


def sources(*folders):
    """The text of all Python files of these folders."""
    return "\n".join(p.read_text() for f in folders for p in sorted((ROOT / f).rglob("*.py")))


def options():
    """Every command's options."""
    context = click.Context(mlx_cached)
    for name in mlx_cached.list_commands(context):
        command = mlx_cached.get_command(context, name)
        yield name, {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}


OPTIONS = dict(options())
CODE = sources(*OURS)
TESTS = sources("tests", "benchmarks")
MAKEFILE = (ROOT / "Makefile").read_text()


def unknown(text):
    """The names in a text that stand for nothing."""
    for variable in re.findall(r"LLM_MLX_CACHED_[A-Z]+", text):
        if variable not in CODE:
            yield variable
    for name, rest in re.findall(r"\bllm mlx-cached ([a-z]+)([^`\n|;#&)]*)", text):
        given = re.findall(r"(?<!\S)(--?[a-z][\w-]*)", rest)
        yield from (f"{name} {option}" for option in given if option not in OPTIONS.get(name, ()))
        yield from () if name in OPTIONS else (f"llm mlx-cached {name}",)
    for target in re.findall(r"`make ([a-z][a-z-]*)", text):
        if not re.search(rf"^{target}:", MAKEFILE, re.MULTILINE):
            yield f"make {target}"
    for test in re.findall(r"`(test_\w+)`", text):
        if f"def {test}(" not in TESTS:
            yield test
    for file in re.findall(r"`((?:[\w.-]+/)+[\w-]+\.(?:py|md|txt|yaml|yml))`", text):
        if not any((ROOT / room / file).exists() for room in ROOMS):
            yield file


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_names_only_what_exists(page):
    assert list(unknown(page.read_text())) == []


def test_what_does_not_exist_is_noticed():
    for text in (
        "`LLM_MLX_CACHED_NOWHERE=1`",
        "`llm mlx-cached clear --older-then 7d`",
        "`llm mlx-cached unlearn`",
        "`make coffee`",
        "`test_of_nothing`",
        "`cache/nothing.py`",
    ):
        assert len(list(unknown(text))) == 1, text


def test_each_variable_that_the_code_reads_is_told():
    told = "".join(page.read_text() for page in PAGES)
    read = set(re.findall(r"\"(LLM_MLX_CACHED_[A-Z]+)\"", CODE))
    assert read
    assert {variable for variable in read if variable not in told} == set()
