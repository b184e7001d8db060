"""Users of this machine: one whose prompts the resident host answers, and one without a host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_mlx_promptcache.config import HOME_VARIABLE, data_folder
from llm_mlx_promptcache.engine.pool import close_engines
from llm_mlx_promptcache.models.default_model import ensure_default_model

KEEP = "LLM_MLX_CACHED_KEEP"
_OK = """
import llm

class Ok(llm.Model):
    model_id = "ok-at-once"
    can_stream = True

    def execute(self, prompt, stream, response, conversation):
        yield "ok"

@llm.hookimpl
def register_models(register):
    register(Ok())
"""


class Home:
    """A user of this benchmark's: llm's folder, ours, and a plugin that answers at once."""

    def __init__(self, folder: Path, data: Path, keep: str) -> None:
        self.folder = folder
        (folder / "mlx").mkdir(parents=True)
        (folder / "mlx" / "data").symlink_to(data)
        plugin = folder / "plugin"
        (plugin / "ok_at_once-0.dist-info").mkdir(parents=True)
        (plugin / "ok_at_once.py").write_text(_OK)
        about = plugin / "ok_at_once-0.dist-info"
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: ok-at-once\nVersion: 0\n")
        (about / "entry_points.txt").write_text("[llm]\nok_at_once = ok_at_once\n")
        self.environment = {
            **os.environ,
            HOME_VARIABLE: str(folder / "mlx"),
            "PYTHONPATH": str(plugin),
            KEEP: keep,
        }

    def start(self, *arguments: str, log: int = 0) -> subprocess.Popen[bytes]:
        """An `llm` in a process of its own, with one of this user's logs."""
        command = str(Path(sys.executable).with_name("llm"))
        return subprocess.Popen(
            [command, *arguments],
            env=self.environment | {"LLM_USER_PATH": str(self.folder / f"llm-{log}")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )

    def llm(self, *arguments: str, log: int = 0) -> tuple[float, str]:
        """Seconds to the first byte that `llm` prints, and all of it."""
        started = time.perf_counter()
        process = self.start(*arguments, log=log)
        assert process.stdout is not None
        first = os.read(process.stdout.fileno(), 1)
        seconds = time.perf_counter() - started
        text = (first + process.stdout.read()).decode()
        if process.wait():
            raise SystemExit(f"llm {arguments[0]} failed; its error is above")
        return seconds, text

    def logged(self, log: int = 0) -> dict[str, Any]:
        """The last answer in one of llm's logs."""
        [entry] = json.loads(self.llm("logs", "list", "--json", "-n", "1", log=log)[1])
        return dict(entry)

    def host(self) -> dict[str, Any]:
        """The output of `llm mlx-cached ps --json`."""
        return dict(json.loads(self.llm("mlx-cached", "ps", "--json")[1]))


@contextmanager
def homes() -> Iterator[tuple[Home, Home]]:
    """A user with a host, which ends with the block, and one without."""
    with tempfile.TemporaryDirectory(prefix="mlx-cached-host-") as folder:
        data = data_folder()
        ensure_default_model(data)
        own = Path(folder) / "own"
        own.mkdir()
        (own / "data").symlink_to(data)
        os.environ[HOME_VARIABLE] = str(own)
        home = Home(Path(folder) / "hosted", data, "10m")
        try:
            yield home, Home(Path(folder) / "alone", data, "0")
        finally:
            close_engines()
            home.llm("mlx-cached", "stop")


def text(words: int, start: int = 0) -> str:
    """A text of about this many words in which no line is like another."""
    lines = (
        f"Station {n} reported {n * 37 % 101} ships and {n * 53 % 89} trains."
        for n in range(start, start + words // 7)
    )
    return " ".join(lines)
