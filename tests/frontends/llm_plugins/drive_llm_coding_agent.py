"""llm-coding-agent: `llm code` reads, changes and runs a project, and goes on with -c."""

from driven_llm import called, results

BROKEN = "def add(a, b):\n    return a - b\n"
CHECK = "from sums import add\n\nassert add(2, 3) == 5\nprint('all is well')\n"
READ = ("CodingTools_read_file", {"path": "sums.py"})
EDIT = (
    "CodingTools_edit_file",
    {"path": "sums.py", "old_string": "    return a - b\n", "new_string": "    return a + b\n"},
)
RUN = ("CodingTools_execute_command", {"command": "python3 check.py", "timeout": 60})
WRITE = (
    "CodingTools_write_file",
    {"path": "notes/done.md", "content": '# Done\n\n- `add` adds "now"\n- <b>checked</b>\n'},
)


def test_a_session_and_the_next(played, user_of):
    user = user_of(
        {
            "Mend add.": played.calls(READ),
            "return a - b": played.calls(EDIT),
            "return a + b": played.calls(RUN),
            "all is well": played.words("add adds now."),
            "Write it down.": played.calls(WRITE),
            "Wrote ": played.words("It is written."),
            "Remove all.": played.calls(
                ("CodingTools_execute_command", {"command": "rm -r notes"})
            ),
            "declined": played.words("Then not."),
        }
    )
    project = user.folder / "project"
    project.mkdir()
    (project / "sums.py").write_text(BROKEN)
    (project / "check.py").write_text(CHECK)
    ask = ("code", "-d", "project", "-m", "mlx-cached")
    typed = "Write it down.\n!tokens\n!quit\n"
    said = user.llm(*ask, "--yolo", "Mend add.", stdin=typed)
    assert said.index("add adds now.") < said.index("It is written.") < said.index("Token usage:")
    assert (project / "sums.py").read_text() == BROKEN.replace("-", "+")
    assert (project / "notes" / "done.md").read_text() == WRITE[1]["content"]
    said = user.llm("code", "-d", "project", "-c", "Remove all.", stdin="n\n!quit\n")
    assert "Then not." in said
    assert (project / "notes").exists()
    entries = user.check(answers=8)
    assert [called(entry) for entry in entries[:3]] == [[READ], [EDIT], [RUN]]
    assert results(entries)[2] == "all is well\nExit code: 0"
