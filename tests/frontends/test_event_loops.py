"""L14: nothing that grows with the prompt is done by an event loop's own thread."""

import asyncio
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import host_of
import llm
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from scripted_engine import add, finished
from scripted_model import environment

import langchain_adapter
import llm_mlx_promptcache
from langchain_adapter import ChatMLXCached
from langchain_adapter import settings as chat_settings
from llm_mlx_promptcache.chat import generated
from llm_mlx_promptcache.chat.template import ChatTemplate
from llm_mlx_promptcache.config import Settings, save_settings
from llm_mlx_promptcache.engine import wire
from llm_mlx_promptcache.engine.events import TextDelta
from llm_mlx_promptcache.engine.pool import close_engines
from llm_mlx_promptcache.engine.reuse import Reuse
from llm_mlx_promptcache.host import frames
from llm_mlx_promptcache.llm_adapter import requests
from llm_mlx_promptcache.llm_adapter.models import AsyncMlxCached
from llm_mlx_promptcache.models.chat_tokenizer import TemplateTokenizer

OURS = tuple(
    str(Path(package.__file__).parent) for package in (langchain_adapter, llm_mlx_promptcache)
)
# What is done to a whole conversation: told, read again, rendered, made ids of, sent.
WORK = [
    (chat_settings, "from_langchain"),
    (requests, "messages_of"),
    (generated.Generated, "from_json"),
    (ChatTemplate, "render"),
    (TemplateTokenizer, "encode"),
    (wire, "to_json"),
    (wire, "survives"),
    (frames, "encode"),
]


class Loop:
    """Calls of our code on the loop's thread, and the threads that do the work of a prompt."""

    def __init__(self):
        self.calls, self.workers = Counter(), {}

    def run(self, asked):
        """Run it on a loop of its own in this thread, and count this thread's calls of ours."""
        self.calls.clear()

        def count(frame, event, _):
            # Builtins that our code calls count too: a sum over a list, say.
            if event in ("call", "c_call") and frame.f_code.co_filename.startswith(OURS):
                self.calls[frame.f_code.co_qualname] += 1

        async def counted():
            sys.setprofile(count)
            try:
                return await asked
            finally:
                sys.setprofile(None)

        return asyncio.run(counted())

    @contextmanager
    def watched(self):
        """Note by which threads each kind of work is done."""
        with pytest.MonkeyPatch.context() as patch:
            for place, name in WORK:
                patch.setattr(place, name, self._noting(name, getattr(place, name)))
            yield

    def _noting(self, name, inner):
        def noted(*given, **more):
            self.workers.setdefault(name, set()).add(threading.get_ident())
            return inner(*given, **more)

        return noted


def history(size):
    """A conversation of so many turns, each with a call, its result and an answer of ours."""
    kept = generated.Generated.of(range(50), "Two.", "model").to_json()
    made = [SystemMessage("You add. " * size)]
    for n in range(size):
        call = {"name": "add", "args": {"a": n, "b": 1}, "id": f"c{n}"}
        made += [
            HumanMessage([{"type": "text", "text": f"And {n}? " * 20}]),
            AIMessage("", tool_calls=[call]),
            ToolMessage([{"type": "text", "text": "Two."}], tool_call_id=f"c{n}"),
            AIMessage("Two.", additional_kwargs={"mlx_cached": kept}),
        ]
    return [*made, HumanMessage("Go on.")]


async def streamed(chat, messages):
    return [chunk async for chunk in chat.astream(messages)]


WAYS = {
    "ainvoke": lambda chat, messages: chat.bind_tools([add]).ainvoke(messages),
    "astream": streamed,
    "awarm": lambda chat, messages: chat.awarm(messages, tools=[add]),
    "aexplain": lambda chat, messages: chat.aexplain(messages),
}


@pytest.mark.parametrize("way", WAYS)
def test_l14_what_a_loop_does_for_langchain_is_the_same_for_any_prompt(engine, way):
    loop, chat = Loop(), ChatMLXCached()

    def ask(size):
        # An answer that lost what the turn before had tells in which message of LangChain's.
        lost = Reuse("lost", "edited", message=4 * size, role="user", lost=9)
        engine.events = [TextDelta("Hello"), finished("Hello", reuse=lost)]
        loop.run(WAYS[way](chat, history(size)))
        return dict(loop.calls)

    for size in (1, 2):  # what is imported and found out once
        ask(size)
    counted = [ask(3), ask(60)]
    assert sum(counted[0].values()) > 5
    assert counted[0] == counted[1]
    assert len(engine.asked[-1].messages) > 200


def llm_chain(size):
    made = [llm.system("You are brief. " * size)]
    for n in range(size):
        made += [llm.user(f"And {n}? " * 20), llm.assistant("Two. " * 20)]
    return made


async def prompted(model, size):
    return await model.prompt("Go on.", messages=[*llm_chain(size), llm.user("Go on.")]).text()


def test_l14_what_a_loop_does_for_llm_is_the_same_for_any_prompt(scripted):
    loop, model = Loop(), AsyncMlxCached()
    for size in (1, 2):
        loop.run(prompted(model, size))
    counted = []
    for size in (3, 60):
        loop.run(prompted(model, size))
        counted.append(dict(loop.calls))
    assert sum(counted[0].values()) > 5
    assert counted[0] == counted[1]
    assert len(scripted.requests[-1].messages) > 100


@pytest.fixture
def model(own_cache, tiny_llama, tmp_path):
    yield tiny_llama(context=32768)
    close_engines()


def test_l14_other_threads_do_what_grows_in_this_process(model, monkeypatch):
    loop, chat = Loop(), ChatMLXCached(model=str(model), max_tokens=4)
    save_settings(Settings(default_model=str(model)))
    monkeypatch.setenv("LLM_MLX_CACHED_KEEP", "0")
    with loop.watched():
        asked = [*history(2)[:1], HumanMessage("Hi.")]
        answer = loop.run(chat.ainvoke(asked))
        loop.run(chat.ainvoke([*asked, answer, HumanMessage("And?")]))
        loop.run(prompted(AsyncMlxCached(), 2))
    assert set(loop.workers) == {"from_langchain", "messages_of", "from_json", "render", "encode"}
    assert threading.get_ident() not in set().union(*loop.workers.values())


def test_l14_other_threads_do_what_grows_before_a_host(model, tmp_path, monkeypatch):
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LLM_MLX_CACHED_KEEP", "1h")
    loop, chat = Loop(), ChatMLXCached(model=str(model), max_tokens=4, resident=True)
    try:
        with loop.watched():
            loop.run(chat.ainvoke([*history(2)[:1], HumanMessage("Hi.")]))
    finally:
        host_of.end(tmp_path / "home")
    assert set(loop.workers) == {"from_langchain", "to_json", "survives", "encode"}
    assert threading.get_ident() not in set().union(*loop.workers.values())
