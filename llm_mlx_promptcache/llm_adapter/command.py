"""llm's own command around an answer: lines of their own, its exit status, and Ctrl-C.

All of it is asked of click's context, in which llm's command runs. For applications that use llm as
a library there is none, and nothing here does anything.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final

import click
import llm

from ..engine.events import Event
from .log_turn import LogTurn

_LLMS_MODULE: Final = "llm.cli"
_KEY: Final = f"{__name__}.state"
_INTERRUPTED: Final = 130  # what a shell says of a command that SIGINT ended


@dataclass
class _CommandState:
    """What holds as long as one run of the command, whatever number of answers it has."""

    status: int = 0
    on_stdout: bool = False  # a line that is not ended
    on_stderr: bool = False
    log_turn: LogTurn = field(default_factory=LogTurn)
    end_is_told: bool = False

    def close(self) -> None:
        """Behind all that llm does: the exit status, where nothing else decided it."""
        self.log_turn.leave()
        error = sys.exc_info()[1]
        if isinstance(error, KeyboardInterrupt):
            if not self.end_is_told:
                click.echo(err=True)
            raise click.exceptions.Exit(_INTERRUPTED)
        if error is None and self.status:
            raise click.exceptions.Exit(self.status)


class LlmCommand:
    """`llm prompt` or `llm chat` around one answer, if it is in one of them.

    `streams`: whether the command shows what it is told as it comes.
    """

    def __init__(self, prompt: llm.Prompt, *, streams: bool) -> None:
        context = click.get_current_context(silent=True)
        name = "" if context is None else _name_of(context.command)
        self._context = context if name else None
        self._is_chat = name == "chat"
        self._shows_text = bool(name) and streams
        self._shows_reasoning = self._shows_text and not prompt.hide_reasoning
        self._state = _state_of(self._context)
        if not _answers_tools(prompt):
            # Behind an answer llm has ended its line.
            self._state.status, self._state.on_stdout, self._state.on_stderr = 0, False, False

    @property
    def is_there(self) -> bool:
        """Whether this answer is for llm's own command."""
        return self._context is not None

    @property
    def is_continued(self) -> bool:
        """Whether a later `llm -c` will find this answer."""
        if self._context is None or self._is_chat:
            return False
        off = (llm.user_dir() / "logs-off").exists()  # type: ignore[no-untyped-call]
        asked = self._context.params
        return not asked.get("no_log") and (bool(asked.get("log")) or not off)

    def shows(self, kind: str, chunk: str) -> None:
        """Note that llm shows this next: text, or reasoning."""
        if kind == "text" and self._shows_text and chunk:
            self._state.on_stdout = not chunk.endswith("\n")
        elif kind == "reasoning" and self._shows_reasoning and chunk:
            self._state.on_stderr = not chunk.endswith("\n")

    def end_line(self) -> None:
        """Have what is said next on stderr stand on a line of its own."""
        state = self._state
        if state.on_stderr or (state.on_stdout and _one_place()):
            click.echo(err=True)
            state.on_stdout = state.on_stderr = False

    @contextmanager
    def errors_apart(self) -> Iterator[None]:
        """Have errors, which llm tells on stderr, stand on a line of their own."""
        try:
            yield
        except GeneratorExit:
            raise
        except BaseException:
            self.end_line()
            raise

    def take_log(self) -> None:
        """Have no other `llm` of ours write the log until this one has; a chat never ends."""
        if self.is_continued:
            self._state.log_turn.take()

    def end_with(self, status: int) -> None:
        """Let the command end with this exit status, once it has logged; a chat goes on."""
        if not self._is_chat:
            self._state.status = status

    def interrupted(self) -> None:
        """Let the command end as one that Ctrl-C ended."""
        self.end_with(_INTERRUPTED)

    def interrupted_early(self) -> None:
        """The same where nothing came yet, and nothing is logged: a line says so."""
        if self._context is not None and not self._is_chat:
            if sys.stderr.isatty():
                click.echo(err=True)  # the terminal has shown ^C
            click.echo("stopped before the answer began", err=True)
            self._state.end_is_told = True
        raise KeyboardInterrupt


class Interrupts:
    """Ctrl-C while llm's command reads an answer: the first ends the answer, what it says is kept.

    A second one, or one where nothing is read, is Python's own KeyboardInterrupt.
    """

    def __init__(self, command: LlmCommand) -> None:
        main = threading.current_thread() is threading.main_thread()
        self._usual: Any = signal.getsignal(signal.SIGINT) if main else None
        self._is_ours = command.is_there and self._usual is signal.default_int_handler
        self._reads = False
        self._came = False

    def events(self, events: Generator[Event]) -> Iterator[Event]:
        """The events up to their end or to Ctrl-C, which `ended` tells."""
        if self._is_ours:
            signal.signal(signal.SIGINT, self._hear)
        try:
            while not self._came:
                self._reads = True
                try:
                    event = next(events)
                except StopIteration:
                    return
                finally:
                    self._reads = False
                yield event
        except KeyboardInterrupt:
            if not self._came:
                raise
        finally:
            if self._is_ours:
                signal.signal(signal.SIGINT, self._usual)

    @property
    def ended(self) -> bool:
        """Whether Ctrl-C ended the answer."""
        return self._came

    def _hear(self, number: int, frame: FrameType | None) -> None:
        again, self._came = self._came, True
        if again or self._reads:
            raise KeyboardInterrupt


def _name_of(command: click.Command) -> str:
    """The name of llm's own `prompt` or `chat`, "" for any other command."""
    made_by: Callable[..., Any] | None = command.callback
    is_llms = getattr(made_by, "__module__", "") == _LLMS_MODULE
    return command.name or "" if is_llms and command.name in ("prompt", "chat") else ""


def _state_of(context: click.Context | None) -> _CommandState:
    if context is None:
        return _CommandState()
    if _KEY not in context.meta:
        context.meta[_KEY] = state = _CommandState()
        context.call_on_close(state.close)
    found: _CommandState = context.meta[_KEY]
    return found


def _answers_tools(prompt: llm.Prompt) -> bool:
    chain = prompt.messages
    return bool(chain) and chain[-1].role == "tool"


def _one_place() -> bool:
    """Whether stdout and stderr are one terminal, pipe or file."""
    with suppress(OSError, ValueError):
        out, error = (os.fstat(stream.fileno()) for stream in (sys.stdout, sys.stderr))
        return (out.st_dev, out.st_ino) == (error.st_dev, error.st_ino)
    return False
