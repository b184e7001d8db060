"""llm's own command around an answer: lines of their own, its exit status, and Ctrl-C.

All of it comes from click's context, in which llm's command runs. Applications that use llm as a
library have none, and nothing here does anything for them.
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
_INTERRUPTED: Final = 130  # a shell's status for a command that SIGINT ended


@dataclass
class _CommandState:
    """State for one run of the command, over all of its answers."""

    status: int = 0
    on_stdout: bool = False  # a line that is not ended
    on_stderr: bool = False
    log_turn: LogTurn = field(default_factory=LogTurn)
    end_is_told: bool = False

    def close(self) -> None:
        """After everything that llm does: set the exit status, unless an error decided it."""
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

    `streams`: the command shows parts of the answer as they come.
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
            # llm has ended the line after an answer.
            self._state.status, self._state.on_stdout, self._state.on_stderr = 0, False, False

    @property
    def is_there(self) -> bool:
        """True if this answer is for llm's own command."""
        return self._context is not None

    @property
    def is_continued(self) -> bool:
        """True if a later `llm -c` will find this answer."""
        if self._context is None or self._is_chat:
            return False
        off = (llm.user_dir() / "logs-off").exists()  # type: ignore[no-untyped-call]
        asked = self._context.params
        return not asked.get("no_log") and (bool(asked.get("log")) or not off)

    def shows(self, kind: str, chunk: str) -> None:
        """Note that llm shows this text or reasoning next."""
        if kind == "text" and self._shows_text and chunk:
            self._state.on_stdout = not chunk.endswith("\n")
        elif kind == "reasoning" and self._shows_reasoning and chunk:
            self._state.on_stderr = not chunk.endswith("\n")

    def end_line(self) -> None:
        """Make the next line on stderr start on a line of its own."""
        state = self._state
        if state.on_stderr or (state.on_stdout and _one_place()):
            click.echo(err=True)
            state.on_stdout = state.on_stderr = False

    @contextmanager
    def errors_apart(self) -> Iterator[None]:
        """Put errors, which llm prints on stderr, on a line of their own."""
        try:
            yield
        except GeneratorExit:
            raise
        except BaseException:
            self.end_line()
            raise

    def take_log(self) -> None:
        """Keep other `llm`s of ours from writing the log until this one has; a chat never ends."""
        if self.is_continued:
            self._state.log_turn.take()

    def end_with(self, status: int) -> None:
        """End the command with this exit status, once it has logged; a chat goes on."""
        if not self._is_chat:
            self._state.status = status

    def interrupted(self) -> None:
        """End the command as Ctrl-C ends one."""
        self.end_with(_INTERRUPTED)

    def interrupted_early(self) -> None:
        """The same before any text came: nothing is logged, and a line says so."""
        if self._context is not None and not self._is_chat:
            if sys.stderr.isatty():
                click.echo(err=True)  # the terminal has shown ^C
            click.echo("stopped before the answer began", err=True)
            self._state.end_is_told = True
        raise KeyboardInterrupt


class Interrupts:
    """Ctrl-C while llm's command reads an answer: the first ends the answer, and keeps its text.

    A second one, or one while nothing is read, is Python's own KeyboardInterrupt.
    """

    def __init__(self, command: LlmCommand) -> None:
        main = threading.current_thread() is threading.main_thread()
        self._usual: Any = signal.getsignal(signal.SIGINT) if main else None
        self._is_ours = command.is_there and self._usual is signal.default_int_handler
        self._reads = False
        self._came = False

    def events(self, events: Generator[Event]) -> Iterator[Event]:
        """The events up to their end or to Ctrl-C (see `ended`)."""
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
        """True if Ctrl-C ended the answer."""
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
    """True if stdout and stderr are one terminal, pipe or file."""
    with suppress(OSError, ValueError):
        out, error = (os.fstat(stream.fileno()) for stream in (sys.stdout, sys.stderr))
        return (out.st_dev, out.st_ino) == (error.st_dev, error.st_ino)
    return False
