"""with_structured_output: a model, and the parser that makes objects of its answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Literal, cast

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import (
    JsonOutputKeyToolsParser,
    PydanticToolsParser,
)
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableMap, RunnablePassthrough
from langchain_core.runnables.utils import AddableDict
from langchain_core.utils.pydantic import is_basemodel_subclass

from .answers import CUT, MISFITS

Method = Literal["json_schema", "function_calling", "json_mode"]


def is_pydantic(schema: Any) -> bool:
    """True if answers become instances of the schema itself, not dicts."""
    return isinstance(schema, type) and is_basemodel_subclass(schema)


def document_parser(schema: Any) -> Runnable[Any, Any]:
    """Objects of a document in an answer's text; one that was cut short is an error."""
    parser: BaseOutputParser[Any]
    if is_pydantic(schema):
        parser = PydanticOutputParser(pydantic_object=schema)
    else:
        # Pydantic checks the whole itself; here nobody else does.
        parser = JsonOutputParser()
        return _each(_whole) | _each(_fitting) | parser
    # LangChain's parser completes half a document, which is right only while it streams.
    return _each(_whole) | parser


def call_parser(schema: Any, name: str) -> Runnable[Any, Any]:
    """Objects of the arguments of an answer's first call; one that was cut short is an error."""
    if is_pydantic(schema):
        return _each(_whole) | PydanticToolsParser(tools=[schema], first_tool_only=True)
    parser = JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
    return _each(_whole) | _each(_fitting) | parser


def structured(
    model: Runnable[Any, Any], parser: Runnable[Any, Any], *, include_raw: bool
) -> Runnable[Any, Any]:
    """The model and its parser; with `include_raw` a parser's error is returned, not raised."""
    if not include_raw:
        return model | parser
    both = RunnableMap(raw=RunnablePassthrough(), outcome=_outcome(parser))
    return model | both | RunnableGenerator(_flat, _flat_async)


def _outcome(parser: Runnable[Any, Any]) -> Runnable[Any, Any]:
    """The outcome of a message: parts of the object while it streams, then the whole or the error.

    Only faults in what the model said are reported so; an error of the model itself is raised.
    """

    def outcome(messages: Iterator[BaseMessage]) -> Iterator[AddableDict]:
        seen = _Seen()
        source = seen.noting(messages)
        try:
            for part in parser.transform(source):
                if seen.streams:
                    yield AddableDict(parsed=part)
        except Exception:
            if seen.failed:
                raise
        for _ in source:  # the part that a parser left unread when it gave up
            pass
        yield seen.parsed_by(parser)

    async def outcome_async(messages: AsyncIterator[BaseMessage]) -> AsyncIterator[AddableDict]:
        seen = _Seen()
        source = seen.noting_async(messages)
        try:
            async for part in parser.atransform(_Unclosed(source)):
                if seen.streams:
                    yield AddableDict(parsed=part)
        except Exception:
            if seen.failed:
                raise
        async for _ in source:
            pass
        yield seen.parsed_by(parser)

    return RunnableGenerator(outcome, outcome_async)


class _Unclosed:
    """Messages that their reader can't close, and that are read on here when it gives up.

    LangChain closes its source whenever the garbage of a failed run is collected.
    """

    def __init__(self, messages: AsyncIterator[BaseMessage]) -> None:
        self._messages = messages

    def __aiter__(self) -> AsyncIterator[BaseMessage]:
        return self

    async def __anext__(self) -> BaseMessage:
        return await anext(self._messages)


class _Seen:
    """The messages that a parser was given, added up, and whether they ended in an error."""

    def __init__(self) -> None:
        self._whole: Any = None
        self.failed = False

    @property
    def streams(self) -> bool:
        """True if the message comes in chunks."""
        return isinstance(self._whole, AIMessageChunk)

    def noting(self, messages: Iterator[BaseMessage]) -> Iterator[BaseMessage]:
        """The messages as they come."""
        try:
            for message in messages:
                self._add(message)
                yield message
        except Exception:
            self.failed = True
            raise

    async def noting_async(
        self, messages: AsyncIterator[BaseMessage]
    ) -> AsyncIterator[BaseMessage]:
        """The same for an event loop."""
        try:
            async for message in messages:
                self._add(message)
                yield message
        except Exception:
            self.failed = True
            raise

    def parsed_by(self, parser: Runnable[Any, Any]) -> AddableDict:
        """The object in the whole message, or the error that there is none."""
        try:
            return AddableDict(parsed=parser.invoke(self._whole), parsing_error=None)
        except Exception as error:
            return AddableDict(parsed=None, parsing_error=error)

    def _add(self, message: BaseMessage) -> None:
        self._whole = message if self._whole is None else self._whole + message


def _flat(parts: Iterator[dict[str, Any]]) -> Iterator[AddableDict]:
    for part in parts:
        yield _flattened(part)


async def _flat_async(parts: AsyncIterator[dict[str, Any]]) -> AsyncIterator[AddableDict]:
    async for part in parts:
        yield _flattened(part)


def _flattened(part: dict[str, Any]) -> AddableDict:
    """`raw` beside its parser's result."""
    raw = {"raw": part["raw"]} if "raw" in part else {}
    return AddableDict({**raw, **part.get("outcome", {})})


def _whole(message: BaseMessage) -> BaseMessage:
    """The message; an error if it was cut short."""
    cut = cast("str | None", message.response_metadata.get(CUT))
    if cut:
        raise OutputParserException(
            f"the answer ended inside {cut} (max_tokens or a stop string); raise max_tokens"
        )
    return message


def _fitting(message: BaseMessage) -> BaseMessage:
    """The message; an error if it breaks a part of its schema that no grammar could enforce."""
    misfits = cast("list[dict[str, str]]", message.response_metadata.get(MISFITS) or [])
    if misfits:
        what = ", ".join(misfit["what"] for misfit in misfits)
        raise OutputParserException(f"the answer does not fit its schema: {what}")
    return message


def _each(check: Callable[[BaseMessage], BaseMessage]) -> Runnable[Any, Any]:
    """`check` on each message as it comes: RunnableLambda would wait for the last one."""

    def each(messages: Iterator[BaseMessage]) -> Iterator[BaseMessage]:
        yield from map(check, messages)

    async def each_async(messages: AsyncIterator[BaseMessage]) -> AsyncIterator[BaseMessage]:
        async for message in messages:
            yield check(message)

    return RunnableGenerator(each, each_async)
