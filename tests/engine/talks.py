"""Conversations with played models that have real tokenizers and templates, a turn at a time."""

from dataclasses import replace
from typing import Any

from llm_mlx_promptcache.cache.identity import Identity
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.chat.messages import Generated, Message
from llm_mlx_promptcache.engine.engine import Engine
from llm_mlx_promptcache.engine.events import Finished
from llm_mlx_promptcache.engine.request import GenerationRequest

SYSTEM = Message("system", "You keep a lighthouse, and answer in few words of a sailor's.")
SAID = "The light burns, and the sea is calm tonight."
THOUGHT = "Is it lit? It is."


def tool(name: str) -> dict[str, Any]:
    """A tool that takes words."""
    parameters = {"type": "object", "properties": {"words": {"type": "string"}}}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def answered(finished: Finished) -> Message:
    """An answer as front ends give it back: its record has been JSON."""
    return Message(
        "assistant",
        finished.text,
        Generated.from_json(finished.generated().to_json()),
        reasoning=finished.reasoning,
        tool_calls=finished.tool_calls,
    )


class Talk:
    """A conversation: `say` asks and keeps the answer, `asks` are words for all of its requests."""

    def __init__(self, engine: Engine, *begin: Message, **asks: Any) -> None:
        self._engine = engine
        self.messages = list(begin)
        self.asks = asks

    def say(self, *new: str | Message) -> Finished:
        """The answer behind these messages, which with it are in the conversation then."""
        self.messages += [Message("user", one) if isinstance(one, str) else one for one in new]
        finished = self.ask()
        self.messages.append(answered(finished))
        return finished

    def ask(self, **other: Any) -> Finished:
        """An answer that the conversation does not keep."""
        request = GenerationRequest(
            tuple(self.messages), **{"max_tokens": 60, **self.asks, **other}
        )
        *_, finished = self._engine.generate(request)
        assert isinstance(finished, Finished)
        return finished

    def edit(self, at: int, **changes: Any) -> None:
        """Change message `at`; its record stays, as in a front end's history."""
        self.messages[at] = replace(self.messages[at], **changes)

    def fork(self) -> "Talk":
        """Another conversation that goes on from here."""
        return Talk(self._engine, *self.messages, **self.asks)


class Shore:
    """One loaded model and engines over it, each with a cache."""

    def __init__(self, loaded: Any, identity: str) -> None:
        self.loaded = loaded
        self._identity = identity
        self._engines: list[Engine] = []

    def engine(self, cache: PromptCache | None = None, identity: str = "") -> Engine:
        """Another engine; `identity` says that it is another model."""
        from llm_mlx_promptcache.engine.one_machine import scheduler_here

        kept = cache or PromptCache("100MB")
        name = identity or self._identity
        self._engines.append(
            Engine(lambda _: scheduler_here(self.loaded, Identity(name, name), kept))
        )
        return self._engines[-1]

    def close(self) -> None:
        """End all engines."""
        for engine in self._engines:
            engine.close()
