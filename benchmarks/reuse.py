"""Tokens prefilled over tokens that are new, ours beside mlx-lm's server, conversation by conversation.

    python benchmarks/reuse.py [--real] [--only WORD] [--keep FOLDER]

Each conversation runs in a process of its own, and again with a new process for each request. The
models are tiny and random; `--real` adds the default model (some minutes). `--keep docs` writes
the table into docs/reuse.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from upstream import Upstream

from llm_mlx_promptcache.config import DEFAULT_MODEL
from llm_mlx_promptcache.engine.chat_tokenizer import TemplateTokenizer

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- table: benchmarks/reuse.py --real --keep docs -->", "<!-- end of table -->"
HEAD = """\
| model | conversation | requests | drifted | new tokens | ours | mlx-lm | ours, restarts | mlx-lm, restarts |
|---|---|--:|--:|--:|--:|--:|--:|--:|
"""


class Sums(NamedTuple):
    """A conversation's tokens, added up."""

    requests: int
    drifted: int
    new: int
    ours: int
    theirs: int


def _conversations() -> Any:
    """The tests' own scripts; tests are no package, so they are loaded by their path."""
    name = "conversations"
    if name not in sys.modules:
        path = ROOT / "tests" / "engine" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


class Child:
    """A process with an engine over a store; `restart` ends it and starts another."""

    def __init__(self, *place: str) -> None:
        self._command = [sys.executable, __file__, "--serve", *place]
        self._process: subprocess.Popen[str] | None = None

    def ask(self, history: list[dict[str, Any]], wanted: dict[str, Any]) -> Any:
        """One request, answered there."""
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
        """End the process once what it promised to the disk is there."""
        if self._process is not None:
            self._process.communicate()
            if self._process.returncode:
                raise RuntimeError(f"a process ended with status {self._process.returncode}")
        self._process = None


def serve(folder: str, kind: str, store: str) -> None:
    """Answer requests, a line of JSON each, until there are no more."""
    conversations = _conversations()
    engine = conversations.engine_over(folder, kind, Path(store))
    for line in sys.stdin:
        history, wanted = json.loads(line)
        print(json.dumps(conversations.answer(engine, history, wanted)), flush=True)
    engine.close()


def play(script: Any, folder: str, kind: str, loaded: Any, restarts: bool) -> Sums:
    """One conversation, ours and then mlx-lm's with the same answers."""
    with tempfile.TemporaryDirectory() as store:
        child = Child(folder, kind, store)
        played = _conversations().play(
            script,
            child.ask,
            TemplateTokenizer(loaded.tokenizer),
            cuttable=kind in ("", "rows"),
            restart=child.restart if restarts else None,
        )
        child.restart()
    upstream, theirs = Upstream(loaded.model, loaded.tokenizer), 0
    for one in played:
        theirs += upstream.ask(one.messages, one.tools, one.answer)
        if restarts:
            upstream.restart()
    new, ours = sum(one.new for one in played), sum(one.prefilled for one in played)
    return Sums(len(played), sum(one.drifted for one in played), new, ours, theirs)


def row(name: str, script: Any, folder: str, kind: str, loaded: Any) -> tuple[str, bool]:
    """A line of the table, and whether every token that was prefilled is new."""
    one, cut = (play(script, folder, kind, loaded, restarts) for restarts in (False, True))
    ratios = [f"{x:.2f}" for s in (one, cut) for x in (s.ours / s.new, s.theirs / s.new)]
    title = script.name + ", thinking stripped" * script.thinking
    cells = [name, title, one.requests, one.drifted, f"{one.new:,}", *ratios]
    line = f"| {' | '.join(map(str, cells))} |\n"
    return line, one.ours == one.new and cut.ours == cut.new


def main() -> int:
    """Print the table; the exit status says whether everything was 1.00."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", action="store_true", help="the default model too")
    parser.add_argument("--only", default="", help="conversations with this in their names")
    parser.add_argument("--keep", type=Path, help="write the table into FOLDER/reuse.md")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(*asked.serve)
        return 0
    conversations = _conversations()
    lines, held = [], True
    sys.stdout.write(HEAD)
    with tempfile.TemporaryDirectory() as place:
        folders = {
            thinks: str(conversations.write_model(Path(place) / str(thinks), thinks))
            for thinks in (False, True)
        }
        plays = [(kind, kind, folders) for kind in conversations.KINDS]
        if asked.real:
            plays.append(("default", "", {False: DEFAULT_MODEL}))
        for name, kind, where in plays:
            loaded = {thinks: conversations.load(folder, kind) for thinks, folder in where.items()}
            for script in (*conversations.SCRIPTS, *conversations.THINKING_SCRIPTS):
                if script.thinking not in where or asked.only not in script.name:
                    continue
                folder = where[script.thinking]
                line, is_new = row(name, script, folder, kind, loaded[script.thinking])
                sys.stdout.write(line)
                sys.stdout.flush()
                lines.append(line)
                held = held and is_new
    if asked.keep is not None:
        _write(asked.keep / "reuse.md", HEAD + "".join(lines))
    return not held


def _write(page: Path, table: str) -> None:
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{START}\n\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
