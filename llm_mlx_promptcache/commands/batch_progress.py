"""The progress of a batch on a terminal's stderr, and warnings about many prompts, shown once."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import click

if TYPE_CHECKING:
    from rich.progress import Progress

_PACKAGE = __name__.partition(".")[0]


class BatchBar:
    """A bar of `total` prompts; none if stderr is no terminal, or stdout is one.

    On stdout's terminal the results themselves show the progress. The bar appears at the first
    `show`: before that a model's fetch may have its line there. Nothing stays behind.
    """

    def __init__(self, total: int, *, to_file: bool) -> None:
        self._total = total
        self._is_seen = sys.stderr.isatty() and (to_file or not sys.stdout.isatty())
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = None

    def show(self, done: int, failed: int) -> None:
        """Show the number of prompts done, failed ones included."""
        if not self._is_seen:
            return
        self._bar = self._bar or _started(self._total)
        told = f"{failed} failed" if failed else ""
        self._bar.update(self._bar.task_ids[0], completed=done, description=told)
        self._bar.refresh()


class _Once(logging.Handler):
    """A handler that prints each line on stderr the first time it is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if line not in self._said:
            self._said.add(line)
            click.echo(line, err=True)


@contextmanager
def told_once() -> Iterator[None]:
    """Print no warning of ours twice meanwhile: one about a prompt holds for many."""
    logger, handler = logging.getLogger(_PACKAGE), _Once()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _started(total: int) -> Progress:
    """A bar of rich's, imported only when it is seen; no thread draws it."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("prompts"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True, force_jupyter=False),
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
    )
    bar.add_task("", total=total)
    bar.start()
    return bar
