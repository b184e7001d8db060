"""Code that users write with ChatMLXCached, for a type checker: it is never run."""

from typing import Any, Literal, TypedDict, assert_type

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import BaseModel

from langchain_mlx_cached import ChatMLXCached, PrefixKeepingSummarization, worth_retrying


class Ship(BaseModel):
    """A ship."""

    kind: Literal["brig", "ketch"]
    masts: int


class Port(TypedDict):
    """A port."""

    name: str


@tool
def depth(place: str) -> int:
    """Tell how deep the water is."""
    return len(place)


def tide(place: str) -> str:
    """Tell when the tide is high at a place."""
    return f"At {place} the tide is high at six."


chat = ChatMLXCached(
    model="default",
    temperature=0.5,
    max_tokens=None,
    stop=["END"],
    seed=3,
    thinking=False,
    cache_salt="ann",
    tool_policy="call_first",
    logprobs=True,
    resident=True,
    template_arguments={"reasoning_effort": "high"},
)
bare = ChatMLXCached()
chat.temperature = 0.7
# What is wrong is seen: a comment that hides nothing is an error itself.
ChatMLXCached(temprature=0.5)  # type: ignore[call-arg]
ChatMLXCached(tool_policy="call_last")  # type: ignore[arg-type]
chat.max_tokens = "many"  # type: ignore[assignment]
chat.invoke(7)  # type: ignore[arg-type]
chat.with_structured_output(Ship, method="xml")  # type: ignore[arg-type]

answer = chat.invoke("Hi.")
assert_type(answer, AIMessage)
assert_type(answer.usage_metadata, UsageMetadata | None)
assert_type(chat.invoke([("system", "Be brief."), ("human", "Hi.")]), AIMessage)
assert_type(chat.invoke([HumanMessage("Hi."), answer], stop=["x"], max_tokens=9), AIMessage)
for chunk in chat.stream("Hi."):
    assert_type(chunk, AIMessageChunk)
assert_type(chat.batch(["Hi.", "Ho."]), list[AIMessage])

tools = chat.bind_tools([tide, depth, Ship, {"title": "x", "type": "object"}], tool_choice="tide")
called = tools.invoke("When is the tide high?")
assert_type(called, AIMessage)
name: str = called.tool_calls[0]["name"]

ship: Runnable[Any, Any] = chat.with_structured_output(Ship)
port = chat.with_structured_output(Port, method="function_calling", include_raw=True)
made = ship.invoke("A brig with two masts.")

chain = ChatPromptTemplate.from_messages([("human", "{question}")]) | chat | StrOutputParser()
assert_type(chain.invoke({"question": "Hi."}), str)
retried = chat.with_retry(retry_if_exception_type=worth_retrying)
assert_type(retried.invoke("Hi."), AIMessage)
bound = chat.bind(max_tokens=9)
assert_type(bound.invoke("Hi."), AIMessage)

assert_type(chat.warm([("system", "Be brief.")], tools=[tide]), int)
assert_type(chat.unload(), bool)
assert_type(chat.get_num_tokens_from_messages([HumanMessage("Hi.")]), int)

agent = create_agent(
    chat,
    [tide, depth],
    system_prompt="You help sailors.",
    middleware=[PrefixKeepingSummarization(chat)],
)
state = agent.invoke({"messages": [HumanMessage("When is the tide high?")]})


def node(state: MessagesState) -> dict[str, list[BaseMessage]]:
    """Answer."""
    return {"messages": [chat.invoke(state["messages"])]}


graph = StateGraph(MessagesState)
graph.add_node("answer", node)
graph.add_edge(START, "answer")
app = graph.compile()
app.invoke({"messages": [HumanMessage("Hi.")]})


async def main() -> None:
    """The same for an event loop."""
    assert_type(await chat.ainvoke("Hi."), AIMessage)
    async for chunk in chat.astream("Hi."):
        assert_type(chunk, AIMessageChunk)
    assert_type(await chat.abatch(["Hi."]), list[AIMessage])
    assert_type(await chat.awarm("Hi."), int)
    assert_type(await chat.aunload(), bool)
