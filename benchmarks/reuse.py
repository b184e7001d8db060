"""Tokens prefilled over tokens that are new, ours beside mlx-lm's server.

    python benchmarks/reuse.py [--models rows window hybrid default] [--only WORD] [--keep FOLDER]

Each conversation runs over one engine, and again with a new process for each request. The models
are tiny and random, but for `default`. `--keep docs` writes the table into docs/reuse.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from harness import helper, write_part
from upstream import Upstream

from llm_mlx_promptcache.config import DEFAULT_MODEL
from llm_mlx_promptcache.models.chat_tokenizer import TemplateTokenizer

conversations = helper("conversations")
HEAD = """\
| model | conversation | requests | drifted | new | ours | mlx-lm | restarts: ours | mlx-lm |
|---|---|--:|--:|--:|--:|--:|--:|--:|
"""


MODELS = ("rows", "window", "hybrid", DEFAULT_MODEL)


class Sums(NamedTuple):
    """A conversation's tokens, added up."""

    requests: int
    drifted: int
    new: int
    ours: int
    theirs: int


class Child:
    """An engine over a store, in a process of its own; `restart` ends it and starts another."""

    def __init__(self, *place: str) -> None:
        self._command = [sys.executable, __file__, "--serve", *place]
        self._process: subprocess.Popen[str] | None = None

    def ask(self, history: list[dict[str, Any]], wanted: dict[str, Any]) -> Any:
        """One request, answered by the child."""
        if self._process is None:
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, text=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([history, wanted]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process that answers has ended; its error stands above")
        return json.loads(line)

    def restart(self) -> None:
        """End the process once its promised writes are on the disk."""
        if self._process is not None:
            self._process.communicate()
            if self._process.returncode:
                raise RuntimeError(f"a process ended with status {self._process.returncode}")
        self._process = None


def serve(folder: str, kind: str, store: str) -> None:
    """Answer requests, a line of JSON each, until there are no more."""
    engine = conversations.engine_over(folder, kind, Path(store))
    for line in sys.stdin:
        history, wanted = json.loads(line)
        print(json.dumps(conversations.answer(engine, history, wanted)), flush=True)
    engine.close()


def play(script: Any, folder: str, kind: str, loaded: Any, restarts: bool) -> Sums:
    """One conversation, ours and then mlx-lm's with the same answers."""
    about = {"tokenizer": TemplateTokenizer(loaded.tokenizer), "cuttable": kind in ("", "rows")}
    with tempfile.TemporaryDirectory() as store:
        if restarts:
            child = Child(folder, kind, store)
            played = conversations.play(script, child.ask, restart=child.restart, **about)
            child.restart()
        else:
            engine = conversations.engine_over(folder, kind, Path(store))
            played = conversations.play(script, partial(conversations.answer, engine), **about)
            engine.close()
    upstream, theirs = Upstream(loaded.model, loaded.tokenizer), 0
    first = played[0]  # has no answer yet, so nothing is replayed
    if upstream.prompt(first.messages, first.tools) != list(first.prompt):
        raise RuntimeError(f"{script.name!r}: both sides must be asked the same prompt")
    for one in played:
        if restarts:
            theirs += upstream.ask_anew(one.messages, one.tools)
        else:
            theirs += upstream.ask(one.messages, one.tools, one.answer)
    new, ours = sum(one.new for one in played), sum(one.prefilled for one in played)
    return Sums(len(played), sum(one.drifted for one in played), new, ours, theirs)


class Row(NamedTuple):
    """A conversation with one model: over one engine, and with a new process for each request."""

    model: str
    conversation: str
    one: Sums
    cut: Sums

    @property
    def line(self) -> str:
        """Its line of the table."""
        ratios = [f"{x:.2f}" for s in self[2:] for x in (s.ours / s.new, s.theirs / s.new)]
        cells = [self.model, self.conversation, self.one.requests, self.one.drifted]
        return f"| {' | '.join(map(str, [*cells, f'{self.one.new:,}', *ratios]))} |\n"

    @property
    def figures(self) -> dict[str, Any]:
        """The row as JSON data."""
        return self._asdict() | {"one": self.one._asdict(), "cut": self.cut._asdict()}

    @property
    def held(self) -> bool:
        """True if every prefilled token is new."""
        return all(sums.ours == sums.new for sums in self[2:])


def row(name: str, script: Any, place: Path) -> Row:
    """Play a conversation both ways."""
    folder, kind = DEFAULT_MODEL, ""
    if name != DEFAULT_MODEL:
        made = place / f"{script.thinking}"
        if not made.exists():
            conversations.write_model(made, script.thinking)
        folder, kind = str(made), name
    loaded = conversations.load(folder, kind)
    one, cut = (play(script, folder, kind, loaded, restarts) for restarts in (False, True))
    return Row(name, script.name + ", thinking stripped" * script.thinking, one, cut)


def main() -> int:
    """Print the table; the exit status says whether everything was 1.00."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="only these")
    parser.add_argument("--only", default="", help="conversations with this in their names")
    parser.add_argument("--keep", type=Path, help="write the table into FOLDER/reuse.md")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(*asked.serve)
        return 0
    rows: list[Row] = []
    sys.stdout.write(HEAD)
    with tempfile.TemporaryDirectory() as place:
        for name in asked.models:
            for script in (*conversations.SCRIPTS, *conversations.THINKING_SCRIPTS):
                if asked.only not in script.name or (script.thinking and name == DEFAULT_MODEL):
                    continue  # the default model does not think
                rows.append(row(name, script, Path(place)))
                sys.stdout.write(rows[-1].line)
                sys.stdout.flush()
    if asked.keep is not None:
        table = HEAD + "".join(one.line for one in rows)
        write_part(asked.keep / "reuse.md", "table", "benchmarks/reuse.py --keep docs", table)
    if asked.json is not None:
        kept = [
            one._asdict() | {"one": one.one._asdict(), "cut": one.cut._asdict()} for one in rows
        ]
        asked.json.write_text(json.dumps(kept))
    return not all(one.held for one in rows)


if __name__ == "__main__":
    sys.exit(main())
