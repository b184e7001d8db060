"""docs/langchain*.md: each of their examples, as printed, in a process of its own."""

import os
import re
import subprocess
from pathlib import Path

import forks
import pytest

DOCS = Path(__file__).parents[2] / "docs"
# A block that begins like this is not run, and its reader sees why.
NOT_RUN = "# Not run by the tests: "


def examples(page):
    """A page's blocks of Python, from top to bottom."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


# Those that a test of their own looks at; a new one needs one too.
CHAIN, AGENT, GRAPH, SCHEMA, WARM, STORED = examples(DOCS / "langchain.md")
(SEEING,) = examples(DOCS / "seeing-reuse.md")
OTHERS = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in sorted(DOCS.glob("langchain-*.md"))
    for number, code in enumerate(examples(page))
    if not code.startswith(NOT_RUN)
]


@pytest.fixture
def run(home, tmp_path):
    """`run(code)`: the lines that a script prints, with the default model and an empty cache."""

    def run(code):
        (tmp_path / "harbour.py").write_text(code)
        environment = {**os.environ, "LLM_MLX_CACHED_HOME": str(home.folder / "mlx")}
        done = subprocess.run(
            [forks.python(), "harbour.py"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


@pytest.mark.real_model
def test_what_the_page_on_seeing_reuse_prints(run):
    assert run(SEEING) == ["healthy", "lost system 0 system", "1 warning"]


def reused(line):
    """The two figures of "N tokens, M of them reused"."""
    return [int(figure) for figure in re.findall(r"\d+", line)]


@pytest.mark.real_model
def test_a_chain(run):
    lines = run(CHAIN)
    assert lines[0]
    assert int(lines[-2].split()[0]) > 10


@pytest.mark.real_model
def test_an_agent(run):
    asked, answered = map(reused, run(AGENT))
    assert asked[1] == 0
    assert answered[1] > asked[0]


@pytest.mark.real_model
def test_a_graph_that_goes_on_in_another_process(run):
    first, second = reused(run(GRAPH)[-1]), reused(run(GRAPH)[-1])
    assert first[1] == 0
    assert second[1] > first[0]


@pytest.mark.real_model
def test_structured_output_and_warming(run):
    assert re.search(r"kind='\w+' masts=-?\d+", run(SCHEMA)[-1])
    assert int(run(WARM)[-1].split()[0]) > 50


def test_what_is_stored_is_loaded(run):
    assert run(STORED) == ["True"]


@pytest.mark.real_model
@pytest.mark.parametrize("code", OTHERS)
def test_an_example_of_another_page(run, code):
    assert run(code)
