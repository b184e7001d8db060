"""A recording of the terminal: a first prompt, the next turn, and what was reused, as SVG.

Each command runs in a new home, on a terminal of 80 columns, and what it left on the screen is
drawn when it was there. Writes docs/terminal.svg; run it with `make recording`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from llm_mlx_promptcache.config import HOME_VARIABLE, data_folder

_DOCS = Path(__file__).resolve().parent
sys.path.append(str(_DOCS.parent / "tests"))
from terminals import on_a_terminal, screens  # noqa: E402 - the tests are in no package

COMMANDS = (
    "llm -m mlx-cached 'What is the capital of France?'",
    "llm -c 'And of Italy?' -u",
    "llm mlx-cached ps",
    "llm mlx-cached explain",
)
_COLUMNS = 80
_PICTURE = _DOCS / "terminal.svg"

# Pixels: of a character, a line, the edge; the size of the type.
_ACROSS, _DOWN, _EDGE, _BAR, _TYPE = 8.4, 20, 16, 28, 14
# Seconds: to type one character, before the next command, and the most that a wait is shown.
_TYPING, _PAUSE, _LONGEST = 0.03, 1.2, 4.0
_BACK, _TEXT, _DIM, _PROMPT = "#0f1720", "#d7dee6", "#6b7a89", "#5fd39a"


class Ran(NamedTuple):
    """A command, what it left on the screen, and after how many seconds."""

    command: str
    lines: list[str]
    seconds: float


class Line(NamedTuple):
    """A line of the picture, as the SVG has it, and from which second on it is there."""

    markup: str
    at: float


def main() -> int:
    """Run the commands and draw them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=_PICTURE, help="where the picture goes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlx-cached-recording-") as folder:
        ran = _recorded(Path(folder))
    options.to.write_text(drawn(ran), encoding="utf-8")
    for one in ran:
        print(f"$ {one.command}", *one.lines, f"  ({one.seconds:.1f} s)", sep="\n")
    return 0


def _recorded(folder: Path) -> list[Ran]:
    environment = {**os.environ, "LLM_USER_PATH": str(folder / "llm")}
    environment[HOME_VARIABLE] = str(folder / "home")
    environment.pop("LLM_MLX_CACHED_KEEP", None)
    # The model is the user's own copy, where there is one; the cache and the host are new.
    (folder / "home").mkdir(mode=0o700)
    (folder / "home" / "data").symlink_to(data_folder())
    try:
        return [_ran(command, environment) for command in COMMANDS]
    finally:
        _ran("llm mlx-cached stop", environment)


def _ran(command: str, environment: dict[str, str]) -> Ran:
    program, *arguments = shlex.split(command)
    path = str(Path(sys.executable).with_name(program))
    started = time.perf_counter()
    status, written = on_a_terminal([path, *arguments], environment, columns=_COLUMNS)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"'{command}' ended with status {status}: {written}")
    *_, lines = [[], *screens(written)]
    return Ran(command, lines, seconds)


def drawn(ran: list[Ran]) -> str:
    """The SVG: each line appears when it did, waits cut at a few seconds; then all of it stays."""
    lines: list[Line] = []
    now = 0.5
    for one in ran:
        lines.append(Line(f'<tspan class="prompt">$ </tspan>{escape(one.command)}', now))
        now += _TYPING * len(one.command) + min(one.seconds, _LONGEST)
        rows = [row for line in one.lines for row in _wrapped(line)]
        lines += [Line(escape(row), now) for row in rows]
        lines.append(Line("", now))
        now += _PAUSE
    lines.pop()
    width = _COLUMNS * _ACROSS + 2 * _EDGE
    height = _BAR + len(lines) * _DOWN + _EDGE
    rows = [_row(number, line) for number, line in enumerate(lines) if line.markup]
    return "\n".join([_head(width, height), *rows, "</svg>", ""])


def _head(width: float, height: float) -> str:
    said = "A first prompt, the next turn in a new process, and what of it was reused"
    dots = "".join(
        f'<circle cx="{_EDGE + 18 * at}" cy="{_BAR / 2}" r="5" fill="{_DIM}"/>' for at in range(3)
    )
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img">
<title>{said}</title>
<style>
text {{ font: {_TYPE}px ui-monospace, Menlo, "DejaVu Sans Mono", monospace; fill: {_TEXT}; \
white-space: pre; animation: shown 0.01s linear backwards; }}
.prompt {{ fill: {_PROMPT}; }}
@keyframes shown {{ from {{ opacity: 0; }} }}
@media (prefers-reduced-motion: reduce) {{ text {{ animation: none; }} }}
</style>
<rect width="100%" height="100%" rx="8" fill="{_BACK}"/>
{dots}"""


def _row(number: int, line: Line) -> str:
    across, down = _EDGE, _BAR + (number + 0.75) * _DOWN
    return (
        f'<text x="{across}" y="{down:.0f}" xml:space="preserve"'
        f' style="animation-delay: {line.at:.2f}s">{line.markup}</text>'
    )


def _wrapped(line: str) -> list[str]:
    """A line as a terminal of this width breaks it."""
    return [line[at : at + _COLUMNS] for at in range(0, max(len(line), 1), _COLUMNS)]


if __name__ == "__main__":
    sys.exit(main())
