"""The output of commands on a terminal, which no conversation's text can command."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import terminals
from rich.cells import cell_len

from llm_mlx_promptcache.commands import shown
from llm_mlx_promptcache.commands.shown import TreeLine, counted, quoted, show_table, show_tree
from llm_mlx_promptcache.commands.wrapping import wrapped


def on_a_terminal(script, columns=80):
    """The output of a script whose stdout is a terminal."""
    command = [sys.executable, "-c", script]
    status, written = terminals.on_a_terminal(command, os.environ, columns=columns)
    assert status == 0, written
    return written


def plain(line):
    """A line without its colours."""
    return re.sub("\x1b\\[[0-9;]*m", "", line)


def test_a_table_on_a_terminal_has_a_head_and_in_a_pipe_it_has_none(capsys):
    script = (
        "from llm_mlx_promptcache.commands.shown import show_table as s;"
        " s(('name', 'is'), [('[b]', 'x')])"
    )
    told = on_a_terminal(script)
    assert "name" in told
    assert "[b]" in told  # not read as markup
    exec(script)
    assert capsys.readouterr().out == "[b]\tx\n"


def test_a_tree_on_a_terminal_and_in_a_pipe(capsys):
    lines = "[L(0, ['one']), L(1, ['two']), L(1, ['three']), L(0, ['four'])]"
    script = (
        "from llm_mlx_promptcache.commands.shown import TreeLine as L, show_tree as s;"
        f" s('root', {lines})"
    )
    told = [line.strip() for line in on_a_terminal(script).splitlines()]
    assert [line.split()[-1] for line in told] == [
        "\x1b[1mroot\x1b[0m",
        "one",
        "two",
        "three",
        "four",
    ]
    assert told[2].startswith("│   ├")
    exec(script)
    assert capsys.readouterr().out == "root\n  one\n    two\n    three\n  four\n"


def test_p7_a_name_out_of_a_file_is_nothing_that_a_terminal_obeys(capsys):
    name = "\x1b]0;mine\x07\x1b[2J/model\n\u202e"
    show_table(["model"], [[name]])
    show_tree(name, [TreeLine(0, [name], name)])
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 3
    assert all(line.strip().isprintable() for line in shown)
    assert "/model" in shown[0]


def test_quoted_text_is_one_line_without_anything_a_terminal_obeys():
    assert quoted('a "b"\nc') == '"a \\"b\\"\\nc"'
    for text in ("\x1b[2J", "\x9b2J", "\u202e", "\u2028", "\x00", "\r", "\ud800"):
        assert quoted(text).isprintable()
    assert len(quoted("x" * 1000, 60)) == 62


NAMES = (
    "mlx-cached/Qwen3-Coder-30B-A3B-Instruct-4bit",
    "模型-你好-世界",
    "/home/me/my models/hub/Qwen3-0.6B-4bit",
)
COLUMNS = ("model", "is", "size", "in 17.7 GB")
ROWS = [
    (f"{NAMES[0]}, coder", NAMES[2], "17.2 GB", "fits"),
    (NAMES[1], "default", "1.5 kB", "fits"),
]


def words_of(text):
    """Pieces that must not be broken over two lines: sizes, and words between marks of a name."""
    return re.findall(r"[\d.]+ [kMG]B|[^\s/@_-]+", text)


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_c15_no_table_breaks_inside_a_word_or_a_number(columns):
    script = f"from llm_mlx_promptcache.commands.shown import show_table as s; s({COLUMNS}, {ROWS})"
    lines = on_a_terminal(script, columns).splitlines()
    assert all(cell_len(plain(line).rstrip()) <= columns for line in lines)
    for word in words_of(" ".join(cell for row in (COLUMNS, *ROWS) for cell in row)):
        assert any(word in line for line in lines), word
    assert (len(lines) == 1 + len(ROWS)) == (columns >= 120)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_c15_no_tree_breaks_inside_a_word_or_a_number(columns):
    parts = ["8e78016b", "16-36", "user", "11.2 kB", "2 hits", "pinned", "in memory alone"]
    tree = [(depth, parts, f'"{"many words " * 20}"') for depth in range(9)]
    script = (
        "from llm_mlx_promptcache.commands.shown import TreeLine, show_tree as s;"
        f" s({NAMES[2]!r}, [TreeLine(*line) for line in {tree}])"
    )
    lines = [plain(line).rstrip() for line in on_a_terminal(script, columns).splitlines()]
    assert all(cell_len(line) <= columns for line in lines)
    for part in parts:
        assert sum(part in line for line in lines) == len(tree), part
    assert sum("\u2026" in line for line in lines) == len(tree)


@pytest.mark.parametrize("width", [1, 5, 12, 40])
def test_c15_what_is_wrapped_fits_and_loses_nothing(width):
    for text in (*NAMES, "450.9 kB superseded", "a" * 50, "-" * 30, "", "one  two"):
        lines = wrapped(text, max(width, 2))
        assert all(cell_len(line) <= max(width, 2) for line in lines) or "kB" in text
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")


@pytest.fixture(scope="module")
def long_names(new_home, tiny_llama, tmp_path_factory):
    """A home whose models have long names and places, and something in its cache."""
    home = new_home()
    folder = tmp_path_factory.mktemp("models") / "some body" / "Qwen3-Coder-30B-A3B-Instruct-4bit"
    shutil.copytree(tiny_llama(), folder)
    home.ours("add", str(folder), "-a", "coder")
    home.ours("add", "mlx-community/Qwen3-0.6B-4bit", "-a", "qwen", "-a", "small")
    home.llm("-m", "coder", "Hello", "-o", "max_tokens", "2")
    return home


@pytest.mark.parametrize("command", ["models", "stats", "settings", "tree"])
@pytest.mark.parametrize("columns", [60, 80, 120])
def test_c15_what_commands_show_fits_on_a_terminal(long_names, command, columns):
    script = "from llm_mlx_promptcache.commands import mlx_cached as c; c()"
    environment = long_names.environment()
    status, written = terminals.on_a_terminal(
        [sys.executable, "-c", script, command], environment, columns=columns
    )
    assert status == 0, written
    lines = [plain(line).rstrip() for line in written.splitlines()]
    assert all(cell_len(line) <= columns for line in lines)
    for word in words_of(long_names.ours(command)[0]):
        assert any(word in line for line in lines), word


HOST = {
    "pid": 4242,
    "build": {"package": "0.1.0", "mlx": "0.32.4", "mlx_lm": "0.32.2"},
    "busy": 0,
    "idle": 12.5,
    "left": 287.5,
    "stage": "serving",
    "models": [
        {"model": NAMES[2], "weights": 17_200_000_000, "cache": 450_900, "loaded": True},
        {"model": NAMES[1], "weights": 1_500, "cache": 0, "loaded": False},
        {"model": f"{NAMES[2]}@/home/me/adapters/模型", "weights": 0, "cache": 9, "loaded": True},
    ],
}


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_c15_what_ps_shows_fits_on_a_terminal(columns):
    script = (
        "from llm_mlx_promptcache.commands import host;"
        f" host.asked = lambda ask, served: {HOST!r}; host.ps([])"
    )
    lines = [plain(line).rstrip() for line in on_a_terminal(script, columns).splitlines()]
    assert all(cell_len(line) <= columns for line in lines)
    told = ["17.2 GB", "450.9 kB", "in memory", "not in memory", "process 4242", "stays until"]
    told += ["model", "weights", "cache", "state"]
    for word in [*told, *words_of(" ".join(one["model"] for one in HOST["models"]))]:
        assert any(word in line for line in lines), word


def test_a_number_and_its_noun_agree_in_all_commands():
    assert [counted(count, "span") for count in (0, 1, 2)] == ["0 spans", "1 span", "2 spans"]
    assert counted(1234, "block", ",") == "1,234 blocks"
    # A number with a form of its own is a constant, or a speed: it is never one.
    nouns = "spans|tokens|files|prompts|blocks|models|hits|were"
    for path in Path(shown.__file__).parent.glob("*.py"):
        numbered = rf'\{{[^{{}}:\n]+\}}(?:"\n *f")? (?:\w+ )?(?:{nouns})\b'
        assert re.findall(numbered, path.read_text()) == [], path
