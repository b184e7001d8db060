"""with_structured_output: a model, and the parser that makes objects of what it says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from operator import itemgetter
from typing import Any, Literal, cast

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import BaseMessage
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import (
    JsonOutputKeyToolsParser,
    PydanticToolsParser,
)
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableMap, RunnablePassthrough
from langchain_core.utils.pydantic import is_basemodel_subclass

from .answers import CUT, MISFITS

Method = Literal["json_schema", "function_calling", "json_mode"]


def is_pydantic(schema: Any) -> bool:
    """Whether answers become instances of the schema itself, and not dicts."""
    return isinstance(schema, type) and is_basemodel_subclass(schema)


def document_parser(schema: Any) -> Runnable[Any, Any]:
    """Objects of a document in an answer's text; one that was cut short is an error."""
    parser: BaseOutputParser[Any]
    if is_pydantic(schema):
        parser = PydanticOutputParser(pydantic_object=schema)
    else:
        # Pydantic looks at the whole itself; here nobody else does.
        parser = JsonOutputParser()
        return _each(_whole) | _each(_fitting) | parser
    # LangChain's parser completes half a document, which is right only while it streams.
    return _each(_whole) | parser


def call_parser(schema: Any, name: str) -> Runnable[Any, Any]:
    """Objects of the arguments of an answer's first call."""
    if is_pydantic(schema):
        return PydanticToolsParser(tools=[schema], first_tool_only=True)
    parser = JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
    return _each(_fitting) | parser


def structured(
    model: Runnable[Any, Any], parser: Runnable[Any, Any], *, include_raw: bool
) -> Runnable[Any, Any]:
    """The model and its parser; with `include_raw` a parser's error is told, not raised."""
    if not include_raw:
        return model | parser
    parsed = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    nothing = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsed.with_fallbacks([nothing], exception_key="parsing_error")


def _whole(message: BaseMessage) -> BaseMessage:
    """The message; an error where it was cut short."""
    cut = cast("str | None", message.response_metadata.get(CUT))
    if cut:
        raise OutputParserException(
            f"the answer ended inside {cut} (max_tokens or a stop string); raise max_tokens"
        )
    return message


def _fitting(message: BaseMessage) -> BaseMessage:
    """The message; an error where it breaks what no grammar could hold it to."""
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
