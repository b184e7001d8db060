"""MlxCached: llm's prompts and events <-> the engine's requests and events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import llm
from llm.parts import Message as LlmMessage
from llm.parts import StreamEvent, TextPart
from pydantic import Field

from .chat.messages import Generated, Message, Role
from .config import load_settings
from .engine.pool import engine_for
from .engine.request import (
    DEFAULT_MAX_TOKENS,
    Finished,
    GenerationRequest,
    Sampling,
    TextDelta,
)

METADATA = "mlx-cached"


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
    max_tokens: int = Field(
        DEFAULT_MAX_TOKENS, ge=1, description="The answer ends after this many tokens."
    )
    seed: int | None = Field(None, description="Makes an answer with a temperature repeatable.")
    cache: bool = Field(
        True, description="Reuse and keep what was computed; false computes all anew."
    )


class MlxCached(llm.Model):
    """A model run with MLX that reuses what earlier prompts, also in other processes, computed."""

    model_id = "mlx-cached"
    can_stream = True
    Options = MlxCachedOptions  # type: ignore[assignment]

    def __str__(self) -> str:
        return f"mlx-cached: {self.model_id}"

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.Response,
        conversation: llm.Conversation | None,
    ) -> Iterator[StreamEvent]:
        """Yield the answer's text, then what replays it exactly, as the part's metadata."""
        request = _request(prompt)
        texts: list[str] = []
        for event in engine_for(load_settings().default_model).generate(request):
            if isinstance(event, TextDelta):
                texts.append(event.text)
                yield StreamEvent(type="text", chunk=event.text)
            elif isinstance(event, Finished):
                _report(event, response)
                # A text part without text is dropped, so an empty answer is carried otherwise.
                carrier = "text" if any(texts) else "reasoning"
                kept = Generated.of(event.ids, "".join(texts), event.fingerprint).to_json()
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
            seed=options.seed,
        ),
        use_cache=options.cache,
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


def _report(event: Finished, response: llm.Response) -> None:
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
