"""Runs of LangChain's: whole answers and streams, for threads and event loops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from llm_mlx_promptcache.host.engines import AnyEngine, Where, engine_for
from llm_mlx_promptcache.models.names import resolve

from .answers import MessageBuilder
from .binding import BindingChat
from .chat_call import ChatCall
from .errors import langchain_errors


class GeneratingChat(BindingChat):
    """A chat model that asks the engine, and answers in LangChain's messages and chunks."""

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = self._call(messages, stop, kwargs)
        with closing(call.events()) as events:
            for event in events:
                if (message := call.builder.message(event)) is not None:
                    return ChatResult(generations=[ChatGeneration(message=message)])
        raise RuntimeError("the engine ended without an answer")

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        call = self._call(messages, stop, kwargs)
        with closing(call.events()) as events:
            for event in events:
                if (chunk := call.builder.chunk(event)) is not None:
                    yield ChatGenerationChunk(message=chunk)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = await asyncio.to_thread(self._call, messages, stop, kwargs)
        async with aclosing(call.atold(call.builder.message)) as told:
            async for message in told:
                return ChatResult(generations=[ChatGeneration(message=message)])
        raise RuntimeError("the engine ended without an answer")

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        call = await asyncio.to_thread(self._call, messages, stop, kwargs)
        async with aclosing(call.atold(call.builder.chunk)) as told:
            async for chunk in told:
                yield ChatGenerationChunk(message=chunk)

    def _call(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> ChatCall:
        """The call that these messages and arguments make.

        This work grows with the conversation, so an event loop has it done on another thread.
        """
        with langchain_errors():
            settings = self.given(stop, kwargs)
            request = settings.request(messages, kwargs)
            engine = settings._engine()
        builder = MessageBuilder(
            settings.model,
            as_blocks=settings.output_version == "v1",
            messages=messages,
        )
        return ChatCall(settings.model, engine, request, builder)

    def _engine(self) -> AnyEngine:
        """The model's engine, in the process that the settings choose."""
        return engine_for(
            resolve(self.model).reference, Where.HOST if self.resident else Where.HERE
        )
