"""MlxCached: llm's prompts and events <-> the engine's requests and events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any, cast

import llm
from llm.parts import Message as LlmMessage
from llm.parts import StreamEvent, TextPart
from pydantic import Field, field_validator

from .chat.messages import Generated, Message, Role
from .config import load_settings
from .engine.engine import Engine
from .engine.pool import engine_for
from .engine.request import (
    DEFAULT_MAX_TOKENS,
    Event,
    Finished,
    GenerationRequest,
    Sampling,
    TextDelta,
)

METADATA = "mlx-cached"
MODEL_ID = "mlx-cached"


class MlxCachedOptions(llm.Options):
    """Options of `llm -m mlx-cached -o NAME VALUE`; the descriptions are the help text."""

    temperature: float = Field(
        0.0, ge=0, description="Randomness; 0 always takes the likeliest token."
    )
    top_p: float = Field(
        1.0, ge=0, le=1, description="Keep the likeliest tokens of this much probability."
    )
    top_k: int = Field(0, ge=0, description="Keep this many of the likeliest tokens; 0: all.")
    min_p: float = Field(
        0.0, ge=0, le=1, description="Drop tokens less likely than this share of the likeliest."
    )
    xtc_probability: float = Field(
        0.0, ge=0, le=1, description="How often to drop all but the least likely of likely tokens."
    )
    xtc_threshold: float = Field(
        0.1, ge=0, le=1, description="What is likely enough for xtc_probability."
    )
    repetition_penalty: float = Field(
        1.0, gt=0, description="Divides the logits of recent tokens; 1: off."
    )
    presence_penalty: float = Field(
        0.0, description="Taken off the logits of tokens that came recently."
    )
    frequency_penalty: float = Field(
        0.0, description="Taken off as often as a token came recently."
    )
    stop: list[str] | None = Field(
        None, description="The answer ends before this string, or any of a JSON list of strings."
    )
    max_tokens: int = Field(
        DEFAULT_MAX_TOKENS, ge=1, description="The answer ends after this many tokens."
    )
    seed: int | None = Field(None, description="Makes an answer with a temperature repeatable.")
    cache: bool = Field(
        True, description="Reuse and keep what was computed; false computes all anew."
    )

    @field_validator("stop", mode="before")
    @classmethod
    def _stops(cls, value: Any) -> Any:
        """Every option comes as a string from llm: one stop string, or a JSON list of them."""
        if not isinstance(value, str):
            return value
        return json.loads(value) if value.lstrip().startswith("[") else [value]


class _Shared:
    """What the model and its async twin have in common."""

    can_stream = True

    def __init__(self, name: str = "", reference: str | None = None) -> None:
        """`mlx-cached`, or `mlx-cached/<name>`; `reference` None is the user's default model."""
        self.model_id = f"{MODEL_ID}/{name}" if name else MODEL_ID
        self._reference = reference

    def __str__(self) -> str:
        return f"mlx-cached: {self.model_id}"

    def _engine(self) -> Engine:
        """The engine of this process; which model is the default is looked up at each call."""
        reference = self._reference
        return engine_for(load_settings().default_model if reference is None else reference)


class MlxCached(_Shared, llm.Model):
    """A model run with MLX that reuses what earlier prompts, also in other processes, computed."""

    Options = MlxCachedOptions  # type: ignore[assignment]

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.Response,
        conversation: llm.Conversation | None,
    ) -> Iterator[StreamEvent]:
        """Yield the answer's text, then what replays it exactly, as the part's metadata."""
        answer = _Answer(response)
        for event in self._engine().generate(_request(prompt)):
            yield from answer.told(event)


class AsyncMlxCached(_Shared, llm.AsyncModel):
    """The same for asyncio: many requests on one event loop, which is never blocked."""

    Options = MlxCachedOptions  # type: ignore[assignment]

    async def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.AsyncResponse,
        conversation: llm.AsyncConversation | None,
    ) -> AsyncGenerator[StreamEvent, None]:
        """Yield the answer's text, then what replays it exactly, as the part's metadata."""
        answer = _Answer(response)
        events = self._engine().agenerate(_request(prompt))
        async with aclosing(events):
            async for event in events:
                for told in answer.told(event):
                    yield told


class _Answer:
    """The engine's events as llm's, and the response's usage."""

    def __init__(self, response: llm.Response | llm.AsyncResponse) -> None:
        self._response = response
        self._shown = False

    def told(self, event: Event) -> Iterator[StreamEvent]:
        """What llm is to see of one event."""
        if isinstance(event, TextDelta):
            self._shown = True
            yield StreamEvent(type="text", chunk=event.text)
        elif isinstance(event, Finished):
            _report(event, self._response)
            # A text part without text is dropped, so an empty answer is carried otherwise.
            carrier = "text" if self._shown else "reasoning"
            kept = Generated.of(event.ids, event.text, event.fingerprint).to_json()
            yield StreamEvent(type=carrier, chunk="", provider_metadata={METADATA: kept})


def _request(prompt: llm.Prompt) -> GenerationRequest:
    options = cast("MlxCachedOptions", prompt.options)
    return GenerationRequest(
        messages=tuple(_messages(prompt)),
        max_tokens=options.max_tokens,
        sampling=Sampling(
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            min_p=options.min_p,
            xtc_probability=options.xtc_probability,
            xtc_threshold=options.xtc_threshold,
            repetition_penalty=options.repetition_penalty,
            presence_penalty=options.presence_penalty,
            frequency_penalty=options.frequency_penalty,
            seed=options.seed,
        ),
        stop=tuple(options.stop or ()),
        use_cache=options.cache,
        # Who keeps no logs wants no copy of the conversation on the disk either.
        on_disk=not (llm.user_dir() / "logs-off").exists(),  # type: ignore[no-untyped-call]
    )


def _messages(prompt: llm.Prompt) -> Iterator[Message]:
    """The whole chain; a system prompt given for this turn takes the place of an older one."""
    chain = list(prompt.messages)
    if prompt.system:
        yield Message("system", prompt.system)
        if chain and chain[0].role == "system":
            chain = chain[1:]
    for message in chain:
        text = "".join(part.text for part in message.parts if isinstance(part, TextPart))
        yield Message(cast("Role", message.role), text, _generated(message))


def _generated(message: LlmMessage) -> Generated | None:
    """The exact tokens of an answer of ours; None for everyone else's."""
    for part in message.parts:
        kept: Any = (getattr(part, "provider_metadata", None) or {}).get(METADATA)
        if kept is not None:
            return Generated.from_json(kept)
    return None


def _report(event: Finished, response: llm.Response | llm.AsyncResponse) -> None:
    usage, timings = event.usage, event.timings
    response.set_usage(
        input=usage.prompt,
        output=usage.generated,
        details={"cached": usage.cached, "prefilled": usage.prefilled},
    )
    response.response_json = {
        "finish_reason": event.reason,
        "cache": event.why,
        "load_seconds": round(timings.load, 3),
        "first_token_seconds": round(timings.first_token, 3),
        "decode_seconds": round(timings.decode, 3),
        "generation_tps": round(usage.generated / timings.decode, 1) if timings.decode else None,
    }
