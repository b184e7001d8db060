"""Refused requests raise LangChain's own exceptions, ValueErrors too, and are asked once."""

import asyncio

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware, SummarizationMiddleware
from langchain_core.exceptions import (
    ContextOverflowError,
    ModelConnectionError,
    ModelInvalidRequestError,
    ModelNotFoundError,
)
from langchain_core.messages import AIMessage, HumanMessage

from langchain_adapter import ChatMLXCached
from llm_mlx_promptcache.models import loading
from llm_mlx_promptcache.models.errors import ModelLoadError, PromptTooLongError

LONG = [HumanMessage("word " * 700)]
IMAGE = [HumanMessage([{"type": "image", "url": "http://x"}])]


@pytest.fixture
def chat(own_cache, tiny_llama):
    return ChatMLXCached(model=str(tiny_llama(context=1024)), max_tokens=8)


@pytest.fixture
def asked(monkeypatch):
    """The number of times that a request was made of LangChain's messages."""
    calls, request = [], ChatMLXCached.request
    monkeypatch.setattr(
        ChatMLXCached, "request", lambda *given: (calls.append(given), request(*given))[1]
    )
    return calls


def ways(chat, messages):
    """The same question in each way that LangChain has."""

    async def stream():
        return [chunk async for chunk in chat.astream(messages)]

    yield lambda: chat.invoke(messages)
    yield lambda: list(chat.stream(messages))
    yield lambda: asyncio.run(chat.ainvoke(messages))
    yield lambda: asyncio.run(stream())
    yield lambda: chat.batch([messages])


def test_l4_a_prompt_that_is_too_long_is_a_context_overflow(chat):
    for ask in ways(chat, LONG):
        with pytest.raises(ContextOverflowError, match="the model's context holds 1024") as caught:
            ask()
        assert isinstance(caught.value, PromptTooLongError)
        assert isinstance(caught.value, ValueError)


def test_a_model_that_is_not_there_is_not_found(own_cache):
    chat = ChatMLXCached(model="/nowhere/at-all")
    for ask in ways(chat, "Hi."):
        with pytest.raises(ModelNotFoundError, match="no folder '/nowhere/at-all'") as caught:
            ask()
        assert isinstance(caught.value, ModelLoadError)
    with pytest.raises(ModelNotFoundError):
        chat.get_num_tokens_from_messages([HumanMessage("Hi.")])


def test_a_model_that_can_not_be_fetched_now_may_be_fetched_later(own_cache, monkeypatch):
    def no_route(*given):
        raise OSError("no route")

    monkeypatch.setattr(loading, "hub_folder", lambda reference: None)
    monkeypatch.setattr("llm_mlx_promptcache.models.hub.fetch", no_route)
    with pytest.raises(ModelConnectionError, match="no route") as caught:
        ChatMLXCached(model="nobody/no-such-model").invoke("Hi.")
    assert isinstance(caught.value, ValueError)
    assert caught.value.is_retryable


def test_what_is_no_text_or_no_setting_is_an_invalid_request(chat):
    for ask in ways(chat, IMAGE):
        with pytest.raises(ModelInvalidRequestError, match="'image' block") as caught:
            ask()
        assert isinstance(caught.value, ValueError)
    with pytest.raises(ModelInvalidRequestError, match="temperature is 1000"):
        chat.invoke("Hi.", temperature=1000)


@pytest.mark.parametrize("messages", [IMAGE, LONG])
def test_l4_what_can_not_succeed_is_not_repeated(chat, asked, messages):
    again = ModelRetryMiddleware(max_retries=2, initial_delay=0, on_failure="error")
    with pytest.raises(ValueError, match=r"image|context"):
        create_agent(chat, [], middleware=[again]).invoke({"messages": messages})
    assert len(asked) == 1
    for retrying in (chat.with_retry(), chat.bind(max_tokens=4).with_retry()):
        asked.clear()
        with pytest.raises(ValueError, match=r"image|context"):
            retrying.invoke(messages)
        assert len(asked) == 1


def test_what_may_succeed_is_repeated(engine, asked):
    def broken(request):
        raise RuntimeError("the device failed")

    engine.generate = broken
    retrying = ChatMLXCached().with_retry(
        stop_after_attempt=3, exponential_jitter_params={"max": 0, "jitter": 0}
    )
    asked.clear()  # making it asks once, of no engine, whether its settings can be asked
    with pytest.raises(RuntimeError, match="the device failed"):
        retrying.invoke("Hi.")
    assert len(asked) == 3


def test_l4_an_agent_whose_summary_is_too_long_recovers(chat, asked):
    history = []
    for n in range(10):
        history += [HumanMessage(f"question {n} " * 6), AIMessage(f"answer {n} " * 6)]
    shorten = SummarizationMiddleware(
        model=chat,
        trigger=("messages", 10),
        keep=("messages", 3),
        summary_prompt="Sum up:\n{messages}",
    )
    agent = create_agent(chat, [], middleware=[shorten])
    state = agent.invoke({"messages": [*history, HumanMessage("And now?")]})
    # The whole history, which is too long, then half of it; and the question.
    assert len(asked) == 3
    kinds = [message.type for message in state["messages"]]
    assert kinds == ["human", "human", "ai", "human", "ai"]
    assert "summary" in state["messages"][0].content


def test_l9_a_schema_without_an_instance_is_refused_in_words(chat):
    endless = {
        "title": "chain",
        "type": "object",
        "properties": {"link": {"$ref": "#/$defs/Link"}},
        "required": ["link"],
        "$defs": {
            "Link": {
                "type": "object",
                "properties": {"next": {"$ref": "#/$defs/Link"}},
                "required": ["next"],
            }
        },
    }
    tool = {"type": "function", "function": {"name": "chain", "parameters": endless}}
    refused = "has no instance that ends: what stands at /[$]defs/Link/properties/next"
    for asked, named in (
        (chat.with_structured_output(endless), "schema"),
        (chat.bind_tools([tool]), "the schema of the tool chain"),
        (chat.bind_tools([tool], tool_choice="any"), "the schema of the tool chain"),
    ):
        with pytest.raises(ModelInvalidRequestError, match=f"^{named} {refused}"):
            asked.invoke("Hi.")
    # What may not be called need not be callable.
    assert chat.bind_tools([tool], tool_choice="none").invoke("Hi.").type == "ai"
    endless["$defs"]["Link"]["required"] = []
    assert chat.bind_tools([tool]).invoke("Hi.").type == "ai"
