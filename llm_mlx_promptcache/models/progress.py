"""Progress of long work on stderr: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

# Called with a stage, the bytes done and the total; 0 and 0 if unknown.
Report = Callable[[str, int, int], None]
# Called between the pieces of long work; an exception it raises ends the work.
BetweenSteps = Callable[[], None]

_WIDTH = 16  # of a bar


def unreported(stage: str, done: int, total: int) -> None:
    """Report nothing."""


def unasked() -> None:
    """Let the work go on: the step of work that nobody ends."""


class ProgressLine:
    """Shows a stage and its progress on stderr, never on stdout; no line stays behind."""

    def __init__(self) -> None:
        self._on_terminal = sys.stderr.isatty()
        self._told: set[str] = set()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show `stage` and its share of `total` (bytes; 0 if unknown)."""
        if self._on_terminal:
            self._live = self._live or _live()
            self._live.update(_shown(stage, done, total), refresh=True)
        elif stage not in self._told:
            print(stage, file=sys.stderr, flush=True)
        self._told.add(stage)

    def close(self) -> None:
        """Take the line off the terminal."""
        if self._live is not None:
            self._live.stop()
        self._live = None


def _live() -> Live:
    """A started display of rich, imported only when it is shown; no thread draws it."""
    from rich.console import Console
    from rich.live import Live

    live = Live(
        console=Console(stderr=True, force_jupyter=False),
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    live.start()
    return live


def _shown(stage: str, done: int, total: int) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    if not total:
        return Text(f"{stage} ...", no_wrap=True, overflow="ellipsis")
    done = min(done, total)
    row = Table.grid(padding=(0, 1))
    row.add_row(
        Text(stage, no_wrap=True, overflow="ellipsis"),
        ProgressBar(total=total, completed=done, width=_WIDTH),
        Text(f"{done / total:.0%} {done / 1e6:.0f}/{total / 1e6:.0f} MB", no_wrap=True),
    )
    return row
