"""Many `llm` at once: every answer is logged."""

import subprocess
import sys

from llm_mlx_promptcache.llm_adapter import log_turn
from llm_mlx_promptcache.llm_adapter.log_turn import LogTurn

# What llm's command does of an answer's end: it logs, here many times over, and then it closes.
_LOGS = """
import sys
from contextlib import suppress
from sqlite3 import OperationalError

import llm
import sqlite_utils

from llm_mlx_promptcache.llm_adapter.log_turn import LogTurn


class Said(llm.Model):
    model_id = "said"

    def execute(self, prompt, stream, response, conversation):
        yield "hello"


path, name, takes_turns = sys.argv[1:]
for number in range(15):
    response = Said().prompt(f"{name} {number}")
    response.text()
    turn = LogTurn()
    if takes_turns == "yes":
        turn.take()
    with sqlite_utils.Database(path) as database, suppress(OperationalError):
        response.log_to_db(database)
    turn.leave()
"""


def logged_by_eight(folder, monkeypatch, takes_turns):
    """The number of answers in the log after eight processes have logged fifteen each."""
    import sqlite_utils
    from llm.migrations import migrate

    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(folder / "mlx"))
    path = folder / f"{takes_turns}.db"
    with sqlite_utils.Database(path) as database:
        migrate(database)
        running = [
            subprocess.Popen([sys.executable, "-c", _LOGS, str(path), str(name), takes_turns])
            for name in range(8)
        ]
        assert [process.wait() for process in running] == [0] * 8
        return database["turns"].count


def test_eight_at_once_log_all_that_they_say(tmp_path, monkeypatch):
    assert logged_by_eight(tmp_path, monkeypatch, "yes") == 120


def test_who_waits_long_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path))
    monkeypatch.setattr(log_turn, "_PATIENCE", 0.0)
    first, second, third = LogTurn(), LogTurn(), LogTurn()
    first.take()
    first.take()
    second.take()
    assert second._lock is None
    second.leave()
    first.leave()
    third.take()
    assert third._lock is not None
    assert (tmp_path / "data" / "llm-log.lock").stat().st_mode & 0o777 == 0o600
    third.leave()


def test_a_folder_that_takes_no_file_is_no_matter(tmp_path, monkeypatch):
    (tmp_path / "data").write_text("a file")
    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path))
    turn = LogTurn()
    turn.take()
    turn.leave()
