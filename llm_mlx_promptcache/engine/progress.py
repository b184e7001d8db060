"""Progress of long work on stderr: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

# With a stage of 40 characters the line still fits a terminal of 80, where alone it can be erased.
_WIDTH = 16


class ProgressLine:
    """Tells a stage and how far it is; stdout is never touched, and no line stays behind."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._stage = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live and self._stage:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show `stage` and its share of `total` (bytes; 0 where it isn't known)."""
        if self._live:
            print(f"\r\x1b[K{stage}{_bar(done, total)}", end="", file=sys.stderr, flush=True)
        elif stage != self._stage:
            print(stage, file=sys.stderr, flush=True)
        self._stage = stage


def _bar(done: int, total: int) -> str:
    if not total:
        return " ..."
    share = min(done / total, 1.0)
    full = int(share * _WIDTH)
    megabytes = f"{done / 1e6:.0f}/{total / 1e6:.0f} MB"
    return f" [{'#' * full}{'.' * (_WIDTH - full)}] {share:4.0%} {megabytes}"
