"""MlxCached and AsyncMlxCached: llm's models, run by the host or in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing, closing

import llm
from llm.parts import StreamEvent

from ..config import MODEL_ID, load_settings
from ..engine.events import Finished
from ..engine.loading_line import LoadingLine
from ..host.engines import engine_for
from ..models.names import default_reference
from ..models.references import shown
from .answers import ResponseBuilder
from .command import Interrupts, LlmCommand
from .options import MlxCachedOptions
from .progress import WaitingLine
from .requests import Question, question_of


class _Shared:
    """The common part of the model and its async twin."""

    can_stream = True
    supports_schema = True
    supports_tools = True

    def __init__(self, name: str = "", reference: str | None = None) -> None:
        """`mlx-cached`, or `mlx-cached/<name>`; `reference` None is the user's default model."""
        self.model_id = f"{MODEL_ID}/{name}" if name else MODEL_ID
        self._reference = reference

    def __str__(self) -> str:
        return f"mlx-cached: {self.model_id}"

    def _resolve(self) -> str:
        """A hub id, a folder, or "default"; the user's default is looked up at each call.

        ValueError if the settings are damaged, since they say what every name of ours means.
        """
        settings = load_settings()
        return default_reference(settings) if self._reference is None else self._reference

    def _asked(self, prompt: llm.Prompt) -> tuple[str, Question]:
        """The model that `prompt` asks now, and its question; ValueError if it can't be asked."""
        reference = self._resolve()
        question = question_of(prompt, self.model_id, reference)
        question.tell_changes()
        return reference, question


class MlxCached(_Shared, llm.Model):
    """A model run with MLX that reuses the work of earlier prompts, in other processes too."""

    Options = MlxCachedOptions  # type: ignore[assignment]

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,  # noqa: FBT001 (llm's signature)
        response: llm.Response,
        conversation: llm.Conversation | None,
    ) -> Iterator[StreamEvent]:
        """Yield the answer's parts as they come, then its exact record, as metadata."""
        command = LlmCommand(prompt, streams=stream)
        reference, question = self._asked(prompt)
        builder = ResponseBuilder(response, question, command)
        response.set_resolved_model(shown(reference))
        events = engine_for(reference).generate(question.request)
        interrupts = Interrupts(command)
        with command.errors_apart(), closing(events), closing(WaitingLine()) as line:
            for event in interrupts.events(events):
                line.show(event)
                yield from builder.stream_events(event)
            if interrupts.ended and not builder.has_ended:
                line.close()
                events.close()
                yield from _stopped(builder, command)


class AsyncMlxCached(_Shared, llm.AsyncModel):
    """The same for asyncio: many requests on one event loop, which is never blocked."""

    Options = MlxCachedOptions  # type: ignore[assignment]

    async def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,  # noqa: FBT001 (llm's signature)
        response: llm.AsyncResponse,
        conversation: llm.AsyncConversation | None,
    ) -> AsyncGenerator[StreamEvent, None]:
        """Yield the answer's parts as they come, then its exact record, as metadata."""
        command = LlmCommand(prompt, streams=stream)
        # Work that grows with the conversation runs on a thread beside the loop's.
        reference, question = await asyncio.to_thread(self._asked, prompt)
        builder = ResponseBuilder(response, question, command)
        response.set_resolved_model(shown(reference))
        events = engine_for(reference).agenerate(question.request)
        # A server's stderr is its log, and many prompts share it: no line for each of them.
        with command.errors_apart(), closing(LoadingLine(reference)) as line:
            try:
                async with aclosing(events):
                    async for event in events:
                        if command.is_there:
                            await asyncio.sleep(0)  # Ctrl-C is only noticed at an await
                        line.show(event)
                        parts: Iterable[StreamEvent] = builder.stream_events(event)
                        if isinstance(event, Finished) and not command.is_there:
                            # This work grows with the conversation; others share the loop.
                            parts = await asyncio.to_thread(list, parts)
                        for part in parts:
                            yield part
            except asyncio.CancelledError:
                # Nothing but Ctrl-C cancels what llm's command runs.
                task = asyncio.current_task()
                if not command.is_there or task is None or task.uncancel() or builder.has_ended:
                    raise
                line.close()
                for part in _stopped(builder, command):
                    yield part


def _stopped(builder: ResponseBuilder, command: LlmCommand) -> Iterator[StreamEvent]:
    """The kept part of an answer that Ctrl-C ended; KeyboardInterrupt if there is none."""
    if not builder.has_come:
        command.interrupted_early()
    yield from builder.stopped()
    command.interrupted()
