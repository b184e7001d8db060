"""The `llm` command in processes of its own, over the user's copy of the real default model."""

import json
import os
import shutil
import subprocess
from contextlib import closing
from pathlib import Path

import forks
import host_of
import pytest
import sqlite_utils
from click.testing import CliRunner
from hosted_home import hosted, impatient, models, user
from llm.cli import cli
from llm.migrations import migrate

from llm_mlx_promptcache.chat.messages import ToolCall
from llm_mlx_promptcache.commands import mlx_cached
from llm_mlx_promptcache.config import Settings, data_folder, save_settings
from llm_mlx_promptcache.engine.events import (
    CallArguments,
    CallName,
    Finished,
    InvalidCall,
    ReasoningDelta,
    Reuse,
    TextDelta,
    Timings,
    Usage,
)
from llm_mlx_promptcache.engine.pool import close_engines
from llm_mlx_promptcache.models.default_model import ensure_default_model

__all__ = ["hosted", "impatient", "models", "user"]  # fixtures


class Home:
    """A user's folders: llm's own, our cache's, and the models, which may be another's."""

    def __init__(self, folder, data):
        self.folder = folder
        (folder / "mlx").mkdir(parents=True, exist_ok=True)
        if data is not None:
            (folder / "mlx" / "data").symlink_to(data)

    hosted = False  # whether a host answers

    def own(self):
        """The variables that make this the user's home."""
        return {
            "LLM_USER_PATH": str(self.folder / "llm"),
            "LLM_MLX_CACHED_HOME": str(self.folder / "mlx"),
        }

    def environment(self, **variables):
        """The environment of this user's processes."""
        return {**os.environ, **self.own(), **variables}

    def llm(self, *arguments, status=0, stdin="", **variables):
        """Run `llm` and return what it wrote to stdout and stderr."""
        environment = self.environment(**variables)
        done = subprocess.run(
            [forks.llm(), *arguments],
            env=environment,
            input=stdin,
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout.strip(), done.stderr.strip()

    def ours(self, *arguments, status=0):
        """Run `llm mlx-cached ...` in this process, which is faster; its stdout and stderr."""
        done = CliRunner().invoke(mlx_cached, arguments, env=self.own())
        assert done.exit_code == status, done.output
        assert done.exception is None or isinstance(done.exception, SystemExit)
        return done.stdout.strip(), done.stderr.strip()

    def told(self, *arguments, status=0):
        """The JSON output of a command of ours."""
        return json.loads(self.ours(*arguments, "--json", status=status)[0])

    def last(self):
        """The entry of the last answer in llm's log, with its token details unpacked."""
        (entry,) = self.logged(1)
        return entry

    def logged(self, count):
        """The same of the last `count` answers, in their order."""
        entries = json.loads(self.llm("logs", "list", "--json", "-n", str(count))[0])
        assert len(entries) == count
        more = [
            {"details": json.loads(entry["token_details"]), "hosted": self.hosted}
            for entry in entries
        ]
        return [entry | told for entry, told in zip(entries, more, strict=True)]

    def copied_to(self, folder):
        """The same home at another place."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Home(folder, None)


class HostedHome(Home):
    """The same where a host answers, which stays until the home is left."""

    hosted = True

    def own(self):
        """The variables that make this the user's home."""
        return {**super().own(), "LLM_MLX_CACHED_KEEP": "1h"}

    def environment(self, **variables):
        """The same, in which a fork of `llm` starts a fork as its host."""
        return super().environment(**{forks.HOSTS: forks.host(), **variables})

    def leave(self):
        """End the host."""
        host_of.end(self.folder / "mlx")


class QuickHome(Home):
    """The same within this process: each call opens what the one before it left on the disk."""

    def __init__(self, folder, model):
        super().__init__(folder, None)
        save_settings(Settings(default_model=str(model)))

    def llm(self, *arguments, status=0, stdin=""):
        """Run llm's command as a new process would, but for its imports."""
        done = CliRunner().invoke(cli, arguments, input=stdin)
        close_engines()
        assert done.exit_code == status, done.output
        return done.stdout.strip(), done.stderr.strip()


@pytest.fixture(scope="session")
def real_data_folder():
    """The user's own data folder, with the default model in it: fetched once a machine."""
    ensure_default_model(data_folder())
    return data_folder()


@pytest.fixture
def home(tmp_path, real_data_folder):
    """A user who has the default model and has never asked anything."""
    return Home(tmp_path / "home", real_data_folder)


@pytest.fixture
def hosted_home(tmp_path, real_data_folder):
    """The same, with a host."""
    home = HostedHome(tmp_path / "hosted", real_data_folder)
    yield home
    home.leave()


@pytest.fixture
def bare_hosted_home(tmp_path):
    """A user with a host who has no model yet."""
    home = HostedHome(tmp_path / "hosted", None)
    yield home
    home.leave()


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """An empty cache for what this process runs, and engines that end with the test."""
    from llm_mlx_promptcache.engine.pool import close_engines

    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path / "own"))
    yield tmp_path / "own"
    close_engines()


@pytest.fixture
def played_chat(own_cache, tmp_path, tiny_llama, shared_views):
    """`played_chat(answers, context)`: a model that answers by cues; with a real tokenizer too."""
    from real_tokenizers import real_tokenizer
    from scripted_model import scripted_folder
    from summed_up import ANSWERS

    from langchain_mlx_cached import ChatMLXCached

    def make(answers=None, context=32768, tokenizer=None, template=None, **settings):
        folder = tmp_path / f"model-{len(list(tmp_path.iterdir()))}"
        source = real_tokenizer(tokenizer) if tokenizer else tiny_llama()
        scripted_folder(folder, source, template, answers or ANSWERS)
        config = json.loads((folder / "config.json").read_text())
        config["max_position_embeddings"] = context
        (folder / "config.json").write_text(json.dumps(config))
        return ChatMLXCached(model=str(folder), max_tokens=100, **settings)

    return make


@pytest.fixture
def show_tools():
    """`show_tools(folder)`: let a tiny model's template show its tools."""

    def change(folder):
        path = Path(folder) / "tokenizer_config.json"
        config = json.loads(path.read_text())
        block = "{{ '<|im_start|>tools\\n' + (tools | tojson) + '<|im_end|>\\n' }}"
        config["chat_template"] = f"{{% if tools %}}{block}{{% endif %}}" + config["chat_template"]
        path.write_text(json.dumps(config))

    return change


@pytest.fixture(scope="session")
def new_home(tmp_path_factory):
    """`new_home()`: a user who has no model yet, for more than one test to copy."""
    return lambda: Home(tmp_path_factory.mktemp("home") / "home", None)


@pytest.fixture
def asked(asked_once, tmp_path):
    """A copy of the home that a file's `asked_once` has asked something in."""
    return asked_once.copied_to(tmp_path / "home")


@pytest.fixture
def bare_home(tmp_path):
    """A user who has no model yet."""
    return Home(tmp_path / "home", None)


@pytest.fixture
def quick_home(tmp_path, monkeypatch, tiny_llama):
    """A user whose default model is a tiny one."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "home" / "llm"))
    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path / "home" / "mlx"))
    return QuickHome(tmp_path / "home", tiny_llama(context=16384))


class Scripted:
    """An engine that answers with given events, one list an answer, and keeps what it was asked.

    `end` is what its end says otherwise; `pause` is waited for before the first event of an async
    answer; `closed` says for each answer whether its reader left it early.
    """

    def __init__(self):
        self.requests, self.answers, self.told, self.closed = [], [], [], []
        self.end, self.pause, self.notes = {}, None, ()

    def generate(self, request):
        whole = False
        try:
            yield from self._events(request)
            whole = True
        finally:
            self.closed.append(not whole)

    async def agenerate(self, request):
        whole = False
        try:
            for event in self._events(request):
                if self.pause is not None:
                    await self.pause.wait()
                yield event
            whole = True
        finally:
            self.closed.append(not whole)

    def _events(self, request):
        self.requests.append(request)
        events = self.answers.pop(0) if self.answers else [TextDelta("Yes.")]
        finished = self._finished(events)
        self.told.append(finished)
        return iter([*events, finished])

    def _finished(self, events):
        arguments = {}
        for event in events:
            if isinstance(event, CallName):
                arguments[event.id] = [event.name, ""]
            elif isinstance(event, CallArguments):
                arguments[event.id][1] += event.text
        calls = tuple(
            ToolCall(name, json.loads(text or "{}"), id)
            for id, (name, text) in arguments.items()
            if not text or text.endswith("}")
        )
        return Finished(
            ids=tuple(range(7, 9 + len(events))),
            text="".join(event.text for event in events if isinstance(event, TextDelta)),
            reason="tool_calls" if calls else "stop",
            usage=Usage(10, 6, 4, 2, 1),
            timings=Timings(0.25, 0.5, 0.5),
            why="nothing else is stored",
            reuse=Reuse(detail="nothing else is stored"),
            fingerprint="scripted",
            reasoning="".join(e.text for e in events if isinstance(e, ReasoningDelta)),
            tool_calls=calls,
            invalid_calls=tuple(e for e in events if isinstance(e, InvalidCall)),
            notes=self.notes,
            peak_bytes=1_500_000_000,
            from_disk=4,
        )._replace(**self.end)


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """The engine of every model is `Scripted`; llm's own folder is an empty one."""
    engine = Scripted()
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path / "own"))
    monkeypatch.setattr(
        "llm_mlx_promptcache.llm_adapter.models.engine_for", lambda reference: engine
    )
    return engine


@pytest.fixture
def engine(monkeypatch):
    """The engine of every `ChatMLXCached`: it says hello, unless it is given other events."""
    from scripted_engine import ScriptedEngine, finished

    from langchain_adapter import generation

    made = ScriptedEngine([TextDelta("Hello"), finished("Hello")])
    monkeypatch.setattr(generation, "engine_for", lambda reference, where: made)
    return made


class Logged:
    """llm's log, in a database file of its own."""

    def __init__(self, path):
        self.path = path

    def log(self, response):
        """Run a prompt and log it as `llm` does."""
        response.text()
        with closing(sqlite_utils.Database(self.path)) as db:
            migrate(db)
            response.log_to_db(db)


@pytest.fixture
def logged(tmp_path):
    """A log that is empty."""
    return Logged(tmp_path / "logs.db")
