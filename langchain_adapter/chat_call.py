"""ChatCall: one call of a chat model, from its request to the messages made of its events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import aclosing, closing
from typing import Any, NamedTuple

from llm_mlx_promptcache.engine.events import Event, Finished
from llm_mlx_promptcache.engine.loading_line import LoadingLine
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.host.engines import AnyEngine

from .answers import M, MessageBuilder
from .errors import langchain_errors
from .reuse import cache_metadata


class ChatCall(NamedTuple):
    """One call: the model and its engine, the request, and the builder of its messages."""

    model: str
    engine: AnyEngine
    request: GenerationRequest
    builder: MessageBuilder

    def events(self) -> Generator[Event]:
        """The events of the answer; closing this frees the engine at once."""
        line, events = LoadingLine(self.model), self.engine.generate(self.request)
        with langchain_errors(), closing(line), closing(events):
            for event in events:
                line.show(event)
                yield event

    def seen(self, ends: Sequence[Finished]) -> dict[str, Any]:
        """The cache's report at the end of a dry run."""
        (end,) = ends
        drafts = {"undrafted": end.undrafted} if end.undrafted else {}
        return cache_metadata(end, self.builder.messages) | drafts

    async def aevents(self) -> AsyncGenerator[Event, None]:
        """The same for an event loop."""
        events = self.engine.agenerate(self.request)
        with langchain_errors(), closing(LoadingLine(self.model)) as line:
            async with aclosing(events):
                async for event in events:
                    line.show(event)
                    yield event

    async def atold(self, tell: Callable[[Event], M | None]) -> AsyncGenerator[M, None]:
        """The messages built from events, the last and largest one on another thread."""
        async with aclosing(self.aevents()) as events:
            async for event in events:
                last = isinstance(event, Finished)
                told = await asyncio.to_thread(tell, event) if last else tell(event)
                if told is not None:
                    yield told
