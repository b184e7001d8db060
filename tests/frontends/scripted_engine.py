"""An engine for LangChain's adapter that says what it is told, with a tool and a schema."""

from langchain_core.tools import tool
from pydantic import BaseModel

from llm_mlx_promptcache.engine.events import Finished, Reuse, Timings, Usage


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Person(BaseModel):
    """A person."""

    name: str
    age: int


class ScriptedEngine:
    """An engine that answers with the events that it is given, and keeps what it was asked."""

    def __init__(self, events):
        self.events, self.asked, self.ended = events, [], 0

    def generate(self, request):
        self.asked.append(request)
        try:
            yield from self.events
        finally:
            self.ended += 1

    async def agenerate(self, request):
        self.asked.append(request)
        try:
            for event in self.events:
                yield event
        finally:
            self.ended += 1


def finished(text="", calls=(), **more):
    parts = {
        "ids": (5, 6, 2),
        "text": text,
        "reason": "tool_calls" if calls else "stop",
        "usage": Usage(20, 12, 8, 3, reasoning=1),
        "timings": Timings(0.0, 0.1, 0.2),
        "why": "told off after token 12",
        "reuse": Reuse(detail="told off after token 12"),
        "fingerprint": "model",
        "tool_calls": tuple(calls),
    }
    return Finished(**{**parts, **more})


def merged(chunks):
    """A stream's chunks put together, as LangChain does."""
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return whole
