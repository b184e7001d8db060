"""Structured output by each of LangChain's methods, and halves of it; the engine is scripted."""

import asyncio
import gc
from enum import Enum
from typing import Annotated, Any, Literal, Optional, TypedDict

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import (
    AIMessage,
)
from pydantic import BaseModel
from scripted_engine import Person, finished

from langchain_adapter import ChatMLXCached
from llm_mlx_promptcache.chat.messages import ToolCall
from llm_mlx_promptcache.engine.events import CallArguments, CallName, Misfit, TextDelta

NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}


class PersonDict(TypedDict):
    """A person."""

    name: str
    age: int


@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
@pytest.mark.parametrize("schema", [Person, PersonDict, Person.model_json_schema()])
def test_structured_output_by_every_method(engine, method, schema):
    text = '{"name": "Ann", "age": 7}'
    engine.events = [TextDelta(text[:9]), TextDelta(text[9:]), finished(text)]
    name = schema["title"] if isinstance(schema, dict) else schema.__name__
    if method == "function_calling":
        call = ToolCall(name, {"name": "Ann", "age": 7}, "c1")
        said = [CallName("c1", name), CallArguments("c1", text)]
        engine.events = [*said, finished("", [call])]
    chat = ChatMLXCached().with_structured_output(schema, method=method)
    person = Person(name="Ann", age=7) if schema is Person else {"name": "Ann", "age": 7}
    assert chat.invoke("Who?") == person
    assert list(chat.stream("Who?"))[-1] == person
    assert asyncio.run(chat.ainvoke("Who?")) == person
    raw = ChatMLXCached().with_structured_output(schema, method=method, include_raw=True)
    answer = raw.invoke("Who?")
    assert (answer["parsed"], answer["parsing_error"]) == (person, None)
    assert isinstance(answer["raw"], AIMessage)
    asked = engine.asked[0]
    if method == "function_calling":
        assert (asked.tool, asked.max_calls, asked.schema) == (name, 1, None)
    else:
        assert set(asked.schema["properties"]) == {"name", "age"}


def test_json_mode_without_a_schema_and_recursive_schemas(engine):
    engine.events = [finished('{"a": 1}')]
    assert ChatMLXCached().with_structured_output(method="json_mode").invoke("Hi.") == {"a": 1}
    recursive = {"$defs": {"Node": NODE}, "$ref": "#/$defs/Node"}
    ChatMLXCached().with_structured_output(recursive).invoke("Hi.")
    assert [asked.json_object for asked in engine.asked] == [True, False]
    assert engine.asked[1].schema == recursive


def test_half_a_document_is_an_error_which_include_raw_tells(engine):
    half = '{"name": "Ann", "age": 7, "more": "an'
    engine.events = [TextDelta(half), finished(half, cut="a JSON document", reason="length")]
    schema = Person.model_json_schema()
    chat = ChatMLXCached().with_structured_output(schema)
    with pytest.raises(OutputParserException, match="raise max_tokens"):
        chat.invoke("Who?")
    with pytest.raises(OutputParserException, match="raise max_tokens"):
        list(chat.stream("Who?"))
    told = ChatMLXCached().with_structured_output(schema, include_raw=True).invoke("Who?")
    assert told["parsed"] is None
    assert isinstance(told["parsing_error"], OutputParserException)
    assert told["raw"].response_metadata["finish_reason"] == "length"


def test_what_with_structured_output_refuses():
    chat = ChatMLXCached()
    with pytest.raises(ValueError, match="method is 'magic'"):
        chat.with_structured_output(Person, method="magic")
    with pytest.raises(ValueError, match="schema is None"):
        chat.with_structured_output(None)
    with pytest.raises(ValueError, match="does not know depth"):
        chat.with_structured_output(Person, depth=3)


class Colour(Enum):
    RED = 1


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize(
    ("schema", "named"),
    [
        (Person | None, "Person | None"),
        (Optional[Person], "Person"),  # noqa: UP045 (as many write it)
        (Person | PersonDict, "Person"),
        (list[Person], "Person"),
        (Annotated[Person, "who"], "Person"),
        (Literal["red", "blue"], "Literal"),
        (int, "int"),
        (dict, "dict"),
        (Colour, "Colour"),
        (Any, "Any"),
        (BaseModel, "BaseModel"),
        ("Person", "a value of the type str"),
        (Person(name="Ann", age=7), "a value of the type Person"),
    ],
)
def test_l9_what_is_no_schema_is_refused_in_words(engine, method, schema, named):
    for ask in (
        lambda: ChatMLXCached().with_structured_output(schema, method=method),
        lambda: ChatMLXCached().bind_tools([], response_format=schema),
        lambda: ChatMLXCached().invoke("Hi.", response_format=schema),
    ):
        with pytest.raises(ValueError, match=r"^schema is .*a Pydantic class") as refused:
            ask()
        assert named in str(refused.value).partition(", and")[0]
        assert len(str(refused.value).splitlines()) == 1
    assert engine.asked == []


def test_a_misfit_is_an_error_where_nobody_else_looks(engine):
    schema = {"title": "Tags", "type": "object", "properties": {"tags": {"uniqueItems": True}}}
    misfits = (Misfit("", "uniqueItems at /properties/tags"),)
    text = '{"tags": [1, 1]}'
    engine.events = [TextDelta(text), finished(text, misfits=misfits)]
    with pytest.raises(OutputParserException, match="uniqueItems at /properties/tags"):
        ChatMLXCached().with_structured_output(schema).invoke("Go.")
    raw = ChatMLXCached().with_structured_output(schema, include_raw=True).invoke("Go.")
    assert raw["parsed"] is None
    assert isinstance(raw["parsing_error"], OutputParserException)
    call = ToolCall("Tags", {"tags": [1, 1]}, "c1")
    engine.events = [finished("", [call], misfits=(Misfit("c1", "uniqueItems at /a"),))]
    called = ChatMLXCached().with_structured_output(schema, method="function_calling")
    with pytest.raises(OutputParserException, match="uniqueItems at /a"):
        called.invoke("Go.")


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_what_a_cut_document_leaves_troubles_no_event_loop(engine, method):
    half = '{"name": "Ann", "age"'
    end = finished(half, cut="a JSON document", reason="length")
    engine.events = [TextDelta(half), end]
    raw = ChatMLXCached().with_structured_output(Person, method=method, include_raw=True)
    troubles = []

    async def ask():
        asyncio.get_running_loop().set_exception_handler(lambda loop, told: troubles.append(told))
        for _ in range(5):
            *_, last = [part async for part in raw.astream("Who?")]
            assert isinstance(last["parsing_error"], OutputParserException)
            gc.collect()
            for _ in range(5):  # turns in which what was collected is closed
                await asyncio.sleep(0)

    asyncio.run(ask())
    assert troubles == []
