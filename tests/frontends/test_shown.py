"""What commands show on a terminal, and that a conversation's text can't command one."""

import os
import pty
import subprocess
import sys

from llm_mlx_promptcache.commands.shown import quoted, show_table, show_tree


def on_a_terminal(script):
    """What a script writes where stdout is a terminal."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    subprocess.run([sys.executable, "-c", script], stdout=follower, env=environment, check=True)
    os.close(follower)
    written = os.read(leader, 1 << 16).decode()
    os.close(leader)
    return written


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
    lines = "[(0, 'one'), (1, 'two'), (1, 'three'), (0, 'four')]"
    script = f"from llm_mlx_promptcache.commands.shown import show_tree as s; s('root', {lines})"
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
    show_tree(name, [(0, name)])
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 3
    assert all(line.strip().isprintable() for line in shown)
    assert "/model" in shown[0]


def test_quoted_text_is_one_line_without_anything_a_terminal_obeys():
    assert quoted('a "b"\nc') == '"a \\"b\\"\\nc"'
    for text in ("\x1b[2J", "\x9b2J", "\u202e", "\u2028", "\x00", "\r", "\ud800"):
        assert quoted(text).isprintable()
    assert len(quoted("x" * 1000, 60)) == 62
