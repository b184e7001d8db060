"""`llm` as users run it: processes over a model that plays a script, and what each costs."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import forks
from click.testing import CliRunner
from llm.cli import cli
from scripted_model import RUNS, Run, environment, runs_of

Entry = Mapping[str, Any]


class ScriptedUser:
    """Someone with a model, and what each of their commands leaves behind.

    `always`: arguments that stand behind those of each command. `runs` has what the model of each
    command ran, `told` what each said on stderr.
    """

    def __init__(self, home: Any, folder: Path, model: Path, always: Sequence[str] = ()) -> None:
        self.folder = folder
        self._home, self._always = home, always
        self._home.ours("default", str(model))
        self.runs: list[list[Run]] = []
        self.told: list[str] = []

    def environment(self) -> dict[str, str]:
        """The variables of the next command."""
        path = environment()["PYTHONPATH"]
        return self._home.environment(PYTHONPATH=path, **{RUNS: str(self._runs_file)})

    def llm(self, *arguments: str, status: int = 0, stdin: str = "") -> str:
        """The output of `llm` in a new process."""
        done = subprocess.run(
            [forks.llm(), *arguments, *self._always],
            cwd=self.folder,
            env=self.environment(),
            input=stdin,
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, (done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        self.ran()
        self.told.append(done.stderr.strip())
        return done.stdout.strip()

    def ran(self) -> None:
        """Keep what the model of a command ran that has ended."""
        self.runs.append(runs_of(self._runs_file))

    def logged(self) -> list[dict[str, Any]]:
        """The entries of `llm logs`, oldest first."""
        done = CliRunner().invoke(cli, ["logs", "list", "--json", "-n", "0"], env=self._home.own())
        assert done.exit_code == 0, done.output
        entries = json.loads(done.output)
        return [entry | {"details": json.loads(entry["token_details"])} for entry in entries]

    @property
    def _runs_file(self) -> Path:
        return self.folder / f"runs-{len(self.runs)}"


def path_of(entry: Entry) -> int:
    """The tokens of a prompt and its answer."""
    return int(entry["input_tokens"] + entry["output_tokens"])


def goes_on(entry: Entry, before: Entry) -> None:
    """All of the path before was there, and what is new was prefilled."""
    assert entry["details"]["cached"] == path_of(before)
    assert entry["details"]["prefilled"] == entry["input_tokens"] - path_of(before)


def tokens_told(entries: Sequence[Entry]) -> int:
    """The number of tokens run according to the log, wrong guesses included."""
    told = [(one["details"], one["output_tokens"]) for one in entries]
    return sum(
        int(details["prefilled"] + said + details["drafted"] - details["accepted"])
        for details, said in told
    )


def called(entry: Entry) -> list[tuple[str, Any]]:
    """The calls of an answer: names and arguments."""
    return [(call["name"], call["arguments"]) for call in entry["tool_calls"]]


def results(entries: Sequence[Entry]) -> list[str]:
    """The results of tools, in the order in which they were logged."""
    return [one["output"] for entry in entries for one in entry["tool_results"]]
