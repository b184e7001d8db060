"""A long prompt's progress: on a terminal, before the answer, and nowhere else."""

import asyncio
import io
import os
import pty
import subprocess
import sys
from pathlib import Path

from terminals import Terminal, screens

from llm_mlx_promptcache.config import Settings, save_settings
from llm_mlx_promptcache.engine.events import Loading, Progress, TextDelta
from llm_mlx_promptcache.engine.loading_line import LoadingLine
from llm_mlx_promptcache.llm_adapter.models import AsyncMlxCached, MlxCached

LONG = "word " * 1200
LOADING = (
    Loading("Fetching small", 1_000_000, 2_000_000),
    Loading("loading the model small", aloud=False),
)


def a_terminal(monkeypatch):
    """Stderr, as long as the test runs (a fixture is too early: capturing sets it again)."""
    stderr = Terminal()
    monkeypatch.setattr("sys.stderr", stderr)
    return stderr


def test_it_tells_how_far_a_prompt_is_and_is_gone_when_the_answer_begins(scripted, monkeypatch):
    terminal = a_terminal(monkeypatch)
    chunks = [Progress(done, 4000, 500) for done in (500, 2000, 3999)]
    scripted.answers = [[*chunks, TextDelta("Yes."), TextDelta(" No.")]]
    seen = []
    for event in MlxCached().prompt("Go.").stream_events():
        seen.append(terminal.getvalue())
        assert event.type == "text"
    first, second, *_, last = screens(seen[0])
    assert first == ["prompt: 500 of 4000 tokens, 500 from the cache ..."]
    assert second[0].startswith("prompt: 2000 of 4000 tokens, 500 from the cache, ")
    assert second[0].endswith("/s ...")
    assert last == []
    assert set(seen) == {seen[0]}


def test_it_tells_that_a_model_loads(scripted, monkeypatch):
    terminal = a_terminal(monkeypatch)
    scripted.answers = [[*LOADING, TextDelta("Yes.")]]
    MlxCached("small", "/models/small").prompt("Go.").text()
    *shown, last = screens(terminal.getvalue())
    lines = [screen[0].rstrip() for screen in shown if screen]
    assert any(line.startswith("Fetching ") and line.endswith(" 50% 1/2 MB") for line in lines)
    assert lines[-1] == "loading the model small ..."
    assert last == []


def test_a_pipe_is_told_what_is_fetched_and_not_that_weights_are_read(scripted, monkeypatch):
    pipe = io.StringIO()
    monkeypatch.setattr("sys.stderr", pipe)
    scripted.answers = [[*LOADING, Progress(1, 20, 0), TextDelta("Yes.")]]
    MlxCached().prompt("Go.").text()
    assert pipe.getvalue() == "Fetching small\n"


def test_many_who_wait_for_one_model_are_told_once(scripted, monkeypatch):
    """All of them hear of it, each in its own time: the second when the first is through."""
    pipe = io.StringIO()
    monkeypatch.setattr("sys.stderr", pipe)
    told = [Loading("Fetching small", done, 2) for done in range(3)]
    told.append(Loading("Converting small"))
    first, second, other = LoadingLine("small"), LoadingLine("small"), LoadingLine("large")
    for event in (*told, TextDelta("Yes.")):
        first.show(event)
    for event in (*told, TextDelta("Yes.")):
        second.show(event)
    assert pipe.getvalue() == "Fetching small\nConverting small\n"
    other.show(Loading("Fetching large"))
    assert pipe.getvalue().endswith("small\nFetching large\n")
    del first, second
    LoadingLine("small").show(told[0])  # another load, later
    assert pipe.getvalue().endswith("Fetching large\nFetching small\n")


def test_an_async_model_tells_a_fetch_and_nothing_else(scripted, monkeypatch):
    pipe = io.StringIO()
    monkeypatch.setattr("sys.stderr", pipe)
    scripted.answers = [[*LOADING, Progress(1, 2000, 0), TextDelta("Yes.")]]

    async def ask():
        return await AsyncMlxCached().prompt("Go.").text()

    assert asyncio.run(ask()) == "Yes."
    assert pipe.getvalue() == "Fetching small\n"


def test_a_short_prompt_and_a_pipe_are_told_nothing(scripted, monkeypatch):
    terminal = a_terminal(monkeypatch)
    scripted.answers = [[Progress(19, 20, 0), TextDelta("Yes.")], [Progress(1, 20, 0)]]
    MlxCached().prompt("Go.").text()
    assert not terminal.getvalue()
    pipe = io.StringIO()
    monkeypatch.setattr("sys.stderr", pipe)
    MlxCached().prompt("Go.").text()
    assert not pipe.getvalue()


def test_on_a_real_terminal_the_answer_is_alone_on_stdout(tiny_llama, monkeypatch, tmp_path):
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path / "mlx"))
    save_settings(Settings(default_model=str(tiny_llama(context=16384))))
    ours, theirs = pty.openpty()
    try:
        asked = ("-m", "mlx-cached", "-", "-o", "max_tokens", "2")
        done = subprocess.run(
            [Path(sys.executable).with_name("llm"), *asked],
            input=LONG,
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
        )
        told = os.read(ours, 1 << 16).decode()
    finally:
        os.close(theirs)
        os.close(ours)
    assert done.returncode == 0, told
    *shown, last = screens(told)
    lines = list(dict.fromkeys(line for screen in shown for line in screen))
    assert len(lines) > 3
    assert lines[0].startswith("loading the model ")
    assert all(line.startswith("prompt: ") for line in lines[1:-1])
    [cut] = last  # behind the answer, which stands elsewhere
    assert cut.startswith("the answer was cut after 2 tokens")
    assert "prompt:" not in done.stdout
