"""Eight threads ask whatever comes to mind, go away, and make mistakes, for a while."""

import random
import threading

import pytest

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.events import Finished
from llm_mlx_promptcache.engine.request import GenerationRequest, Sampling
from llm_mlx_promptcache.models.kv_settings import KVSettings

TOOL = {
    "type": "function",
    "function": {
        "name": "magic",
        "parameters": {
            "type": "object",
            "properties": {"input": {"type": "integer", "minimum": 0, "maximum": 9}},
        },
    },
}
MISTAKES = [
    {"schema": {"type": "nothing"}},
    {"regex": "(?=a)b"},
    {"tools": (TOOL,), "tool": "other"},
    {"template_arguments": {"tools": 1}},
]
WISHES = [
    {},
    {},
    {"schema": {"type": "object", "properties": {"a": {"type": "boolean"}}}},
    {"tools": (TOOL,), "tool": "magic", "max_tokens": 90},
    {"regex": "[a-d]{2,9}"},
    {"kv": KVSettings(8, 32, 30)},
    {"stop": ("a", "e")},
    {"logprobs": 2},
    {"cache_salt": "somebody else"},
    {"use_cache": False},
    {"warm": True},
]


class Worker(threading.Thread):
    """A thread with conversations of its own over one system prompt, for `turns` turns."""

    def __init__(self, engine, seed, turns):
        super().__init__(daemon=True)
        self.engine, self.random, self.turns = engine, random.Random(seed), turns
        self.answered = self.refused = self.left = 0
        self.failure = None

    def run(self):
        history = []
        try:
            for _ in range(self.turns):
                history = self.turn(history if len(history) < 12 else [])
        except BaseException as error:
            self.failure = error

    def turn(self, history):
        choice = self.random.choice
        if not history:
            history = [Message("system", f"You keep lighthouse {choice('ABC')}. " * 20)]
        history = [*history, Message("user", choice(["One?", "Two? " * 30, "words " * 300]))]
        if self.random.random() < 0.1:
            return self.mistake(history)
        wish = {"max_tokens": self.random.randint(1, 40), **choice(WISHES)}
        sampling = Sampling(temperature=choice([0, 1]), seed=self.random.randint(0, 9))
        events = self.engine.generate(GenerationRequest(tuple(history), sampling=sampling, **wish))
        if self.random.random() < 0.15:
            for _ in range(self.random.randint(1, 6)):
                next(events, None)
            events.close()
            self.left += 1
            return history[:-1]
        *_, last = events
        assert isinstance(last, Finished)
        assert last.usage.cached + last.usage.prefilled == last.usage.prompt
        self.answered += 1
        if wish.get("warm") or last.tool_calls or last.cut:
            return history[:-1]
        return [*history, Message("assistant", last.text, last.generated())]

    def mistake(self, history):
        wrong = GenerationRequest(tuple(history), **self.random.choice(MISTAKES))
        with pytest.raises(ValueError, match=r"schema|regex|tool|template"):
            list(self.engine.generate(wrong))
        self.refused += 1
        return history[:-1]


def run(tiny_llama, engine_of, tmp_path, turns, seed):
    print(f"seed {seed}")
    store = DiskStore(tmp_path)
    cache = PromptCache("6MB", disk=store)  # small, so that much is evicted
    engine = engine_of(tiny_llama(context=1 << 15, heads=2), cache)
    workers = [Worker(engine, seed + number, turns) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(600)
    assert not any(worker.is_alive() for worker in workers)
    assert [worker.failure for worker in workers] == [None] * 8
    assert sum(worker.answered for worker in workers) > 0
    *_, last = engine.generate(GenerationRequest((Message("user", "Still there?"),), max_tokens=3))
    assert isinstance(last, Finished)
    engine.close()
    assert cache.check() == []
    assert store.check() == []
    return workers


def test_a_short_while(tiny_llama, engine_of, tmp_path):
    run(tiny_llama, engine_of, tmp_path, 3, seed=1)


@pytest.mark.soak
def test_a_long_while(tiny_llama, engine_of, tmp_path):
    workers = run(tiny_llama, engine_of, tmp_path, 120, seed=random.randrange(1 << 30))
    assert sum(worker.refused for worker in workers) > 0
    assert sum(worker.left for worker in workers) > 0
