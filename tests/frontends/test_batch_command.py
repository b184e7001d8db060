"""`llm mlx-cached batch`: many prompts at once, each answered, logged and told by itself."""

import asyncio
import json
import os
import signal
from contextlib import aclosing, closing

import pytest
import sqlite_utils
from click.testing import CliRunner
from terminals import Terminal, screens

from llm_mlx_promptcache.commands import mlx_cached
from llm_mlx_promptcache.commands.batch_progress import BatchBar
from llm_mlx_promptcache.engine.events import Finished, TextDelta, Timings, Usage
from llm_mlx_promptcache.engine.pool import close_engines
from llm_mlx_promptcache.llm_adapter.many import BatchAnswer, BatchPrompt, answers
from llm_mlx_promptcache.llm_adapter.models import AsyncMlxCached
from llm_mlx_promptcache.models.errors import ModelLoadError

SYSTEM = " ".join(["Answer in one word."] * 12)


class Gated:
    """An engine that says a prompt backwards; some wait for others, fail, or are interrupted."""

    def __init__(self):
        self.asked, self.requests, self.ended = [], [], []
        self.behind, self.errors, self.interrupts, self.ends = {}, {}, set(), {}
        self._said = {}

    async def agenerate(self, request):
        text = request.messages[-1].content
        self.asked.append(text)
        self.requests.append(request)
        try:
            if text in self.interrupts:
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.Event().wait()
            if other := self.behind.get(text):
                await self._event(other).wait()
            if text in self.errors:
                raise self.errors[text]
            yield TextDelta(text[::-1])
            yield self._finished(text)
        finally:
            self.ended.append(text)
            self._event(text).set()

    def _event(self, text):
        return self._said.setdefault(text, asyncio.Event())

    def _finished(self, text):
        usage, timings = Usage(10, 6, 4, 2), Timings(0.0, 0.1, 0.2)
        end = Finished((7, 8), text[::-1], "stop", usage, timings, "", "gated")
        return end._replace(**self.ends.get(text, {}))


@pytest.fixture
def engine(monkeypatch, tmp_path):
    """The engine of every model; llm's own folder and ours are empty ones."""
    made = Gated()
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path / "own"))
    monkeypatch.setattr("llm_mlx_promptcache.llm_adapter.models.engine_for", lambda reference: made)
    return made


@pytest.fixture
def run(engine, tmp_path):
    """Run a batch of these lines: the results, and what is said on stderr."""
    (tmp_path / "llm").mkdir()

    def run(lines, *arguments, status=0, output=None):
        path = tmp_path / "in.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        to = ["-o", str(output)] if output else []
        done = CliRunner().invoke(mlx_cached, ["batch", str(path), *arguments, *to])
        assert done.exit_code == status, (done.output, done.exception)
        text = output.read_text() if output and output.exists() else done.stdout
        return [json.loads(line) for line in text.splitlines()], done.stderr

    return run


def prompts(*texts):
    return [{"prompt": text, "id": text} for text in texts]


def logged(tmp_path):
    path = tmp_path / "llm" / "logs.db"
    if not path.exists():
        return []
    with closing(sqlite_utils.Database(path)) as database:
        return list(database.query("select id, input_tokens, model from turns order by id"))


@pytest.mark.parametrize("way", ["ordered", "unordered", "file", "unordered file"])
def test_results_come_in_the_prompts_order_or_as_they_come(run, engine, tmp_path, way):
    engine.behind = {"a": "c", "b": "a"}
    output = tmp_path / "out.jsonl" if "file" in way else None
    flags = ["--unordered"] if "unordered" in way else []
    found, told = run(prompts("a", "b", "c"), *flags, output=output)
    assert [one["id"] for one in found] == (["c", "a", "b"] if flags else ["a", "b", "c"])
    assert {one["id"]: one["text"] for one in found} == {"a": "a", "b": "b", "c": "c"}
    usage = {"input": 10, "output": 2, "cached": 6, "prefilled": 4}
    assert all(one["usage"] == usage for one in found)
    assert told == "3 answered; of 30 prompt tokens 18 were cached, 12 were prefilled\n"


def test_no_more_are_asked_at_once_than_was_said(run, engine):
    # With two at once the third is asked only when one is through; nobody waits for it.
    engine.behind = {"b": "a"}
    run(prompts("a", "b", "c", "d"), "-j", "2")
    assert (sorted(engine.asked[:2]), engine.asked[2:]) == (["a", "b"], ["c", "d"])
    engine.asked.clear()
    engine.ended.clear()
    run(prompts("e", "f"), "-j", "1")
    assert (engine.asked, engine.ended) == (["e", "f"], ["e", "f"])


def test_one_bad_prompt_is_its_own_error(run, engine, tmp_path):
    engine.errors = {"bad": ValueError("the prompt has 9 tokens\nand the context holds 8")}
    found, told = run(prompts("a", "bad", "c"), status=1)
    assert [one.get("text") for one in found] == ["a", None, "c"]
    assert found[1]["error"] == "the prompt has 9 tokens and the context holds 8"
    assert told.startswith("2 answered, 1 failed; ")
    assert [one["response"] for one in (found[0], found[2])] == [
        row["id"] for row in logged(tmp_path)
    ]


def test_a_model_that_cant_be_loaded_is_nobodys_error(run, engine):
    engine.errors = {"b": ModelLoadError("there is no such model")}
    engine.behind = {"b": "a"}
    found, told = run(prompts("a", "b", "c", "d"), "-j", "2", status=1)
    assert [one["id"] for one in found][:1] == ["a"]
    assert not any("error" in one for one in found)
    assert told == "Error: there is no such model\n"
    assert engine.ended == engine.asked


def test_an_answer_that_a_limit_left_without_text_failed(run, engine):
    engine.ends = {"": {}, "a": {"reason": "length"}, " ": {"reason": "length"}}
    found, told = run([{"prompt": "a"}, {"prompt": " a"}], "--option", "max_tokens", "2")
    assert [one["finish_reason"] for one in found] == ["length", "stop"]
    # What is true of many prompts is said once, and the results have it all.
    engine.ends = {text: {"reason": "length"} for text in "abc"}
    _, told = run(prompts("a", "b", "c"), "--option", "max_tokens", "2")
    assert told.splitlines()[:-1] == ["the answer was cut after 2 tokens (max_tokens is 2)"]


def test_answers_are_logged_as_llm_logs(run, engine, tmp_path):
    run(prompts("a"), "--no-log")
    assert logged(tmp_path) == []
    (tmp_path / "llm" / "logs-off").touch()
    found, _ = run(prompts("a"))
    assert logged(tmp_path) == []
    assert "response" not in found[0]
    run(prompts("a"), "--log")
    (tmp_path / "llm" / "logs-off").unlink()
    found, _ = run([{"prompt": "a", "system": SYSTEM, "schema": "x int"}, {"prompt": "b"}])
    rows = logged(tmp_path)
    assert [row["id"] for row in rows][1:] == sorted(one["response"] for one in found)
    assert {row["model"] for row in rows} == {"mlx-cached"}
    # Who keeps no logs wants nothing on the disk either.
    assert [request.on_disk for request in engine.requests] == [True, False, False, True, True]
    assert engine.requests[3].schema["properties"] == {"x": {"type": "integer"}}
    assert engine.requests[3].messages[0].content == SYSTEM


def test_a_log_that_cant_be_written_costs_no_answer(run, tmp_path):
    (tmp_path / "llm" / "logs.db").mkdir()
    found, told = run(prompts("a", "b"))
    assert [one["text"] for one in found] == ["a", "b"]
    assert len([line for line in told.splitlines() if "llm's log can't be written" in line]) == 1


def test_a_second_run_asks_what_is_left(run, engine, tmp_path):
    output = tmp_path / "out"
    engine.errors = {"b": ValueError("not now")}
    run(prompts("a", "b", "c"), status=1, output=output)
    engine.asked.clear()
    engine.errors.clear()
    found, told = run(prompts("a", "b", "c", "d"), output=output)
    assert sorted(engine.asked) == ["b", "d"]
    assert [one["text"] for one in found] == ["a", "b", "c", "d"]
    assert told.startswith("2 answered; 2 were there already; ")
    for more in (["-m", "mlx-cached"], ["--unordered"]):
        told = run(prompts(*"abcd"), *more, output=output)[1]
        assert told == "0 answered; 4 were there already\n"
    _, told = run(prompts("a"), "--option", "seed", "1", status=1, output=output)
    assert "answers another prompt, or the same with other options" in told


def test_ctrl_c_keeps_what_is_there_and_tells_how_to_go_on(run, engine, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/bin/llm", "mlx-cached", "batch", "in file", "-o", "out"])
    engine.interrupts = {"c"}
    output = tmp_path / "out"
    found, told = run(prompts("d", "c", "b", "a"), "-j", "1", status=130, output=output)
    assert [one["id"] for one in found] == ["b", "a"]
    assert told.splitlines()[-1] == (
        "stopped; what is left is asked by: llm mlx-cached batch 'in file' -o out"
    )
    assert engine.ended == engine.asked == ["a", "b", "c"]
    assert len(logged(tmp_path)) == 2
    engine.interrupts.clear()
    engine.asked.clear()
    found, _ = run(prompts("d", "c", "b", "a"), output=output)
    assert sorted(engine.asked) == ["c", "d"]
    assert [one["id"] for one in found] == ["d", "c", "b", "a"]


def test_ctrl_c_shows_on_stdout_what_waited_for_its_turn(run, engine):
    # Two at once: the third is asked when the second is through, which waits for the first.
    engine.interrupts, engine.behind = {"c"}, {"a": "nobody"}
    found, told = run(prompts("a", "b", "c"), "-j", "2", status=130)
    assert [one["id"] for one in found] == ["b"]
    assert "with -o FILE the same command would ask only what is left" in told
    assert sorted(engine.ended) == ["a", "b", "c"]


async def test_who_is_cancelled_has_what_was_there(engine, monkeypatch):
    """The reader is cancelled in the very step in which two answers come: both are read."""
    from llm_mlx_promptcache.llm_adapter import many

    read, step = [], asyncio.Event()

    async def answer(model, asked):
        await (step if asked.line != "c" else asyncio.Event()).wait()
        return BatchAnswer(asked.line, None, ValueError("no") if asked.line == "a" else None)

    monkeypatch.setattr(many, "_answer", answer)

    async def reads():
        asked = [BatchPrompt(text, text) for text in ("a", "b", "c")]
        async with aclosing(answers(AsyncMlxCached(), asked, 3)) as found:
            async for one in found:
                read.append(one.line)

    task = asyncio.create_task(reads())
    for _ in range(5):
        await asyncio.sleep(0)
    step.set()
    await asyncio.sleep(0)  # both answers are there, and nobody has looked
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert read == ["b", "a"]  # an error, at which some readers stop, comes last


@pytest.mark.parametrize(
    ("line", "arguments", "words"),
    [
        ({"prompt": "a", "promt": "b"}, (), "line 2: there is no field 'promt'"),
        ({"prompt": "a"}, ("--option", "sed", "1"), "sed: Extra inputs"),
        ({"prompt": "a"}, ("-m", "nothing"), "'nothing' is not a registered name"),
    ],
)
def test_what_cant_be_asked_is_told_before_anything_is(run, engine, line, arguments, words):
    found, told = run([{"prompt": "fine"}, line], *arguments, status=1)
    (told,) = told.splitlines()
    assert told.startswith("Error: ")
    assert words in told
    assert (found, engine.asked) == ([], [])


def test_the_prompts_own_file_is_never_written(run, engine, tmp_path):
    path = tmp_path / "in.jsonl"
    _, told = run([{"id": 1, "prompt": "a"}], status=1, output=path)
    assert "holds the prompts" in told
    assert json.loads(path.read_text()) == {"id": 1, "prompt": "a"}


def test_options_that_llm_has_set_hold_and_lines_go_before_them(run, engine, tmp_path):
    (tmp_path / "llm" / "model_options.json").write_text(
        json.dumps({"mlx-cached": {"max_tokens": 7, "seed": 1, "top_k": 3}})
    )
    run(
        [{"prompt": "a", "options": {"seed": 3}}], "--option", "seed", "2", "--option", "top_k", "4"
    )
    (request,) = engine.requests
    assert request.max_tokens == 7
    assert (request.sampling.seed, request.sampling.top_k) == (3, 4)


def test_a_terminal_sees_how_far_it_is_and_a_pipe_nothing(monkeypatch, capsys):
    with BatchBar(3, to_file=True) as bar:
        bar.show(1, 0)
    assert capsys.readouterr().err == ""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with BatchBar(3, to_file=True) as bar:
        assert terminal.getvalue() == ""
        bar.show(1, 0)
        bar.show(2, 1)
    *shown, last = [" ".join(screen) for screen in screens(terminal.getvalue())]
    assert any("1/3 prompts" in screen and "failed" not in screen for screen in shown)
    assert any("2/3 prompts" in screen and "1 failed" in screen for screen in shown)
    assert last == ""
    monkeypatch.setattr("sys.stdout", Terminal())
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with BatchBar(3, to_file=False) as bar:  # the results are on the same terminal
        bar.show(1, 0)
    assert terminal.getvalue() == ""


def test_what_the_engine_refuses_is_its_lines_error(bare_home, tiny_llama, tmp_path):
    bare_home.ours("default", str(tiny_llama(context=128)))
    lines = [
        {"prompt": "Hello", "options": {"max_tokens": 3}},
        {"prompt": "word " * 200},
        {"prompt": "Hello", "schema": {"type": "nothing"}},
        {"prompt": "Hello", "options": {"tool_choice": "any"}},
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out, told = bare_home.ours("batch", str(path), status=1)
    close_engines()
    first, *others = [json.loads(line) for line in out.splitlines()]
    assert first["usage"]["output"] == 3
    assert [one["id"] for one in others] == [2, 3, 4]
    words = ("the model's context holds 128", "nothing", "there are no tools")
    for one, said in zip(others, words, strict=True):
        assert said in one["error"]
    assert "1 answered, 3 failed; " in told
