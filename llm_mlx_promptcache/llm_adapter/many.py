"""Many prompts at once, each asked and logged as `llm` does it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import llm
from llm.parts import ReasoningPart

from .models import AsyncMlxCached

# Fields of an answer's record in llm's log that go into a batch's result.
_TOLD = ("finish_reason", "stopped_by", "cut", "misfits", "notes")
T = TypeVar("T")


@dataclass(frozen=True)
class BatchPrompt(Generic[T]):
    """One prompt; `line` is whatever identifies its answer."""

    line: T
    prompt: str = field(repr=False)
    system: str = field(default="", repr=False)
    schema: Mapping[str, Any] | None = field(default=None, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)


class BatchAnswer(NamedTuple, Generic[T]):
    """The outcome of a prompt: llm's response, or the error instead."""

    line: T
    response: llm.AsyncResponse | None
    error: Exception | None


async def answers(
    model: AsyncMlxCached, prompts: Sequence[BatchPrompt[T]], at_once: int
) -> AsyncGenerator[BatchAnswer[T], None]:
    """The answers as they come, with `at_once` prompts asked at a time.

    Cancelled, it yields those that are complete and ends the others.
    """
    left = iter(prompts)
    asking: set[asyncio.Task[BatchAnswer[T]]] = set()
    try:
        while True:
            while len(asking) < at_once and (asked := next(left, None)) is not None:
                asking.add(asyncio.create_task(_answer(model, asked)))
            if not asking:
                return
            done, asking = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            for one in _answers_first(done):
                yield one
    except asyncio.CancelledError:
        done = {task for task in asking if task.done()}
        asking -= done
        for one in _answers_first(done):
            yield one
        raise
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


def _answers_first(done: Iterable[asyncio.Task[BatchAnswer[T]]]) -> list[BatchAnswer[T]]:
    """Outcomes that came together, errors last: stopping at an error misses no answer."""
    return sorted((task.result() for task in done), key=lambda one: one.error is not None)


def result_of(response: llm.AsyncResponse) -> dict[str, Any]:
    """A response as a line of results: its text, how it ended, and its tokens."""
    parts = [part for message in response._messages_now() for part in message.parts]
    reasoning = "".join(part.text for part in parts if isinstance(part, ReasoningPart))
    told: Mapping[str, Any] = response.response_json or {}
    details: Mapping[str, Any] = response.token_details or {}
    return {
        "text": response.text_or_raise(),
        **({"reasoning": reasoning} if reasoning else {}),
        **{name: told[name] for name in _TOLD if told.get(name)},
        "usage": {
            "input": response.input_tokens,
            "output": response.output_tokens,
            "cached": details.get("cached"),
            "prefilled": details.get("prefilled"),
        },
    }


async def _answer(model: AsyncMlxCached, asked: BatchPrompt[T]) -> BatchAnswer[T]:
    conversation = model.conversation()  # one each, as llm's own command has
    response = conversation.prompt(
        asked.prompt,
        system=asked.system or None,
        schema=None if asked.schema is None else dict(asked.schema),
        options=dict(asked.options),
    )
    try:
        await response
    except Exception as error:  # of this prompt; the others go on
        return BatchAnswer(asked.line, None, error)
    return BatchAnswer(asked.line, response, None)
