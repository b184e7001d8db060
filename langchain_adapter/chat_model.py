"""ChatMLXCached: LangChain's chat model interface over the engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import Field

from llm_mlx_promptcache.chat.messages import Generated
from llm_mlx_promptcache.engine.engine import Engine
from llm_mlx_promptcache.engine.pool import engine_for
from llm_mlx_promptcache.engine.request import (
    DEFAULT_MAX_TOKENS,
    Event,
    Finished,
    GenerationRequest,
    Sampling,
    TextDelta,
)

from .messages import from_langchain, to_metadata


class ChatMLXCached(BaseChatModel):
    """A chat model run with MLX that never computes the same prefix twice.

    `model` is "default", a folder, or a hub id; it is loaded by the first call, once a process.
    """

    model: str = Field(default="default")
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = DEFAULT_MAX_TOKENS
    seed: int | None = None
    stop: list[str] | None = None
    use_cache: bool = True
    namespace: str = ""

    @property
    def _llm_type(self) -> str:
        return "mlx-cached"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = ("model", "temperature", "top_p", "top_k", "min_p", "max_tokens", "seed")
        return {name: getattr(self, name) for name in names}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        engine, request = self._asked(messages, stop, kwargs)
        for event in engine.generate(request):
            if isinstance(event, Finished):
                return self._result(event)
        raise RuntimeError("the engine ended without an answer")

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        engine, request = self._asked(messages, stop, kwargs)
        for event in engine.generate(request):
            if (chunk := self._chunk(event)) is not None:
                yield chunk

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        engine, request = self._asked(messages, stop, kwargs)
        async with aclosing(engine.agenerate(request)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    return self._result(event)
        raise RuntimeError("the engine ended without an answer")

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        engine, request = self._asked(messages, stop, kwargs)
        async with aclosing(engine.agenerate(request)) as events:
            async for event in events:
                if (chunk := self._chunk(event)) is not None:
                    yield chunk

    def _result(self, event: Finished) -> ChatResult:
        message = AIMessage(content=event.text, **self._closing(event))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _chunk(self, event: Event) -> ChatGenerationChunk | None:
        if isinstance(event, TextDelta):
            return ChatGenerationChunk(message=AIMessageChunk(content=event.text))
        if isinstance(event, Finished):
            last = AIMessageChunk(content="", chunk_position="last", **self._closing(event))
            return ChatGenerationChunk(message=last)
        return None

    def _asked(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> tuple[Engine, GenerationRequest]:
        """The engine to ask, and the request, with what this call says otherwise."""
        own = {name: value for name, value in kwargs.items() if name in type(self).model_fields}
        settings = self.model_copy(update=own)
        request = GenerationRequest(
            messages=tuple(from_langchain(messages)),
            max_tokens=settings.max_tokens,
            sampling=Sampling(
                temperature=settings.temperature,
                top_p=settings.top_p,
                top_k=settings.top_k,
                min_p=settings.min_p,
                seed=settings.seed,
            ),
            stop=tuple(stop or settings.stop or ()),
            use_cache=settings.use_cache,
            salt=settings.namespace,
        )
        return engine_for(settings.model), request

    def _closing(self, event: Finished) -> dict[str, Any]:
        """What an answer carries beside its text: usage, metadata, and how to replay it."""
        usage = event.usage
        kept = Generated.of(event.ids, event.text, event.fingerprint)
        return {
            "additional_kwargs": to_metadata(kept),
            "usage_metadata": UsageMetadata(
                input_tokens=usage.prompt,
                output_tokens=usage.generated,
                total_tokens=usage.prompt + usage.generated,
                input_token_details=InputTokenDetails(cache_read=usage.cached),
            ),
            "response_metadata": {
                "model_name": self.model,
                "model_provider": "mlx-cached",
                "finish_reason": event.reason,
                "cache": event.why,
            },
        }
