"""`llm mlx-cached ...`: the group; each command is imported when it runs.

`llm --help` imports every plugin, so this file imports nothing but click.
"""

from __future__ import annotations

import errno
import os
import sys
from importlib import import_module
from io import TextIOWrapper
from keyword import iskeyword
from typing import Any

import click

_WHERE = {
    "models": "models",
    "add": "add",
    "remove": "models",
    "default": "models",
    "download": "models",
    "serve": "serve",
    "ps": "host",
    "stop": "host",
    "stats": "cache",
    "tree": "spans",
    "explain": "explain",
    "trace": "trace",
    "warm": "warm",
    "batch": "batch",
    "pin": "spans",
    "unpin": "spans",
    "check": "cache",
    "compact": "cache",
    "export": "exchange",
    "import": "exchange",
    "clear": "clear",
    "path": "cache",
    "settings": "cache",
    "bench": "bench",
    "doctor": "doctor",
}


class _Commands(click.Group):
    """A group that knows its commands by name alone until one is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_WHERE)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _WHERE:
            return None
        module = import_module(f".{_WHERE[cmd_name]}", __name__)
        found: click.Command = getattr(module, cmd_name + "_" * iskeyword(cmd_name))
        return found

    def invoke(self, ctx: click.Context) -> Any:
        _make_streams_whole()
        try:
            return super().invoke(ctx)
        except ValueError as error:  # every error that a user can act on is one
            raise click.ClickException(_plain(error)) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader has left; click knows what to do
                raise
            raise click.ClickException(_plain(error)) from error


def _make_streams_whole() -> None:
    """Streams that were closed lead nowhere; output takes what its character set does not have."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _plain(error: Exception) -> str:
    """An error's text, for a terminal: the names in it may be anything."""
    return "".join(
        sign if sign.isprintable() or sign in "\n\t" else ascii(sign)[1:-1] for sign in str(error)
    )


@click.group(name="mlx-cached", cls=_Commands)
def mlx_cached() -> None:
    """Models run with MLX that never compute the same prefix twice."""
