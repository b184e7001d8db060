"""Conversations of every shape: peers take them, so we do, and nothing is computed twice."""

import asyncio

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.graph import START, MessagesState, StateGraph
from real_families import Played, every_family
from real_tokenizers import real_tokenizer
from scripted_model import scripted_folder

from langchain_adapter import ChatMLXCached
from llm_mlx_promptcache.engine import notes

pytestmark = pytest.mark.usefixtures("shared_views")

ASK = [SystemMessage("You answer in one word."), HumanMessage("Which colour has the sky?")]
AGAIN = HumanMessage("And the grass?")
SAID = "The harbour lies in the north of the town, behind the mill."


def cached(answer):
    return answer.usage_metadata["input_token_details"]["cache_read"]


def prefilled(answer):
    return answer.response_metadata["cache"]["prefilled"]


@pytest.fixture
def chat(own_cache, tiny_llama):
    return ChatMLXCached(model=str(tiny_llama()), max_tokens=8)


@pytest.mark.filterwarnings("ignore:this model's chat template has no place")
@pytest.mark.parametrize("family", every_family(often={"Qwen3", "Llama 3.1", "gpt-oss"}))
def test_real_families_answer_an_answer_and_go_on_with_one(tmp_path, own_cache, family):
    played = Played(family)
    spoken = {"Where is the harbour?": SAID, SAID: "Too long."}
    spoken = {cue: played.words(text) for cue, text in spoken.items()}
    chat = ChatMLXCached(model=str(played.folder(tmp_path / "played", spoken)), max_tokens=64)
    wrote, judged = written_and_judged(chat)
    assert (wrote.text, judged.text) == (SAID, "Too long.")
    if played.keeps:
        # All of the writer's answer was there; what is new is the critic's own beginning.
        assert cached(judged) >= wrote.usage_metadata["total_tokens"] - 1
    goes_on(chat, wrote.usage_metadata["output_tokens"] - 6)


def written_and_judged(chat):
    """The answers of a graph whose second node is given what ends with the first one's answer."""
    graph = StateGraph(MessagesState)
    for name in ("writer", "critic"):
        graph.add_node(name, lambda state: {"messages": [chat.invoke(state["messages"])]})
    graph.add_edge(START, "writer")
    graph.add_edge("writer", "critic")
    state = graph.compile().invoke({"messages": [HumanMessage("Where is the harbour?")]})
    return state["messages"][1:]


def goes_on(chat, most):
    """An answer that is cut goes on where it ended, and one token is run again."""
    asked = [HumanMessage("Where is the harbour?")]
    first = chat.invoke(asked, max_tokens=most)
    assert SAID.startswith(first.text)
    rest = chat.invoke([*asked, first], continue_final=True)
    assert first.text + rest.text == SAID
    assert rest.response_metadata["finish_reason"] == "stop"
    assert prefilled(rest) == 1


@pytest.mark.parametrize(
    "messages",
    [
        [HumanMessage("a"), AIMessage("b")],
        [SystemMessage("Write a haiku.")],
        [HumanMessage("")],
        [HumanMessage("a"), AIMessage("b"), HumanMessage("")],
        [SystemMessage("s"), HumanMessage("")],
        [HumanMessage("a"), AIMessage(""), AIMessage("c")],
    ],
)
def test_l3_what_peers_take(chat, messages):
    first, second = chat.invoke(messages), chat.invoke(messages)
    assert first.content == second.content
    assert prefilled(second) == 1
    count = chat.get_num_tokens_from_messages(messages)
    assert first.usage_metadata["input_tokens"] == count
    # The next question finds all of it.
    later = chat.invoke([*messages, first, AGAIN])
    assert cached(later) >= first.usage_metadata["total_tokens"] - 1


def test_an_answer_that_was_cut_goes_on_where_it_ended(chat):
    # Behind five tokens no character is half: its halves would be shown apart.
    whole = chat.invoke(ASK, max_tokens=15)
    first = chat.invoke(ASK, max_tokens=5)
    assert first.response_metadata["finish_reason"] == "length"
    rest = chat.invoke([*ASK, first], max_tokens=10, continue_final=True)
    assert first.content + rest.content == whole.content
    assert rest.usage_metadata["output_tokens"] == 10
    # The prompt ends with the very tokens that were generated: one is run again.
    assert rest.usage_metadata["input_tokens"] == first.usage_metadata["total_tokens"]
    assert prefilled(rest) == 1


def test_an_answer_that_went_on_is_replayed_as_one(chat):
    first = chat.invoke(ASK, max_tokens=6)
    rest = chat.invoke([*ASK, first], max_tokens=10, continue_final=True)
    joined = AIMessage(first.content + rest.content, additional_kwargs=rest.additional_kwargs)
    later = chat.invoke([*ASK, joined, AGAIN])
    assert cached(later) >= rest.usage_metadata["total_tokens"] - 1
    # Apart they are two answers, as they stand there.
    apart = chat.invoke([*ASK, first, rest, AGAIN])
    assert apart.usage_metadata["input_tokens"] > later.usage_metadata["input_tokens"]


def test_every_way_goes_on(chat):
    first = chat.invoke(ASK, max_tokens=6)
    asked = [*ASK, first]
    rest = chat.invoke(asked, continue_final=True).content

    async def ways():
        chunks = [chunk async for chunk in chat.astream(asked, continue_final=True)]
        return (await chat.ainvoke(asked, continue_final=True)).content, chunks

    awaited, chunks = asyncio.run(ways())
    streamed = "".join(chunk.content for chunk in chat.stream(asked, continue_final=True))
    assert {awaited, streamed, "".join(chunk.content for chunk in chunks)} == {rest}
    bound = chat.bind(continue_final=True)
    assert bound.invoke(asked).content == rest


@pytest.mark.parametrize(
    ("messages", "more", "reason"),
    [
        (ASK, {}, r"messages\[1\].role is 'user'"),
        ([*ASK, AIMessage("It")], {"response_format": {"type": "json_object"}}, "json_object"),
        ([*ASK, AIMessage("It")], {"regex": "[ab]"}, "regex"),
    ],
)
def test_what_can_not_go_on_is_refused(chat, messages, more, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        chat.invoke(messages, continue_final=True, **more)
    assert "continue_final" in str(caught.value)


def test_an_answer_goes_on_to_the_end_of_the_context(own_cache, tiny_llama):
    folder = str(tiny_llama(context=96))
    chat = ChatMLXCached(model=folder, max_tokens=None, logit_bias={2: -100.0})
    answer = chat.invoke(ASK)
    assert answer.usage_metadata["total_tokens"] == 96
    assert answer.response_metadata["finish_reason"] == "length"
    assert chat.profile["max_output_tokens"] == chat.profile["max_input_tokens"] == 96
    short = ChatMLXCached(model=folder, max_tokens=4)
    assert short.invoke(ASK, max_tokens=None).usage_metadata["output_tokens"] > 4


def test_a_result_of_a_call_that_could_not_be_read(chat, monkeypatch):
    monkeypatch.setattr(notes, "_told", {})  # other tests' models have the same fingerprint
    wrong = {"name": "f", "args": "{", "id": "1", "error": "e", "type": "invalid_tool_call"}
    answered = [
        HumanMessage("a"),
        AIMessage("", invalid_tool_calls=[wrong]),
        ToolMessage("bad json", tool_call_id="1", status="error"),
        HumanMessage("b"),
    ]
    with pytest.warns(UserWarning, match="no place for these calls"):
        assert chat.invoke(answered).usage_metadata["input_tokens"] > 20


def test_a_template_that_rewrites_an_answer_that_went_on_is_no_fault_of_the_user(
    tmp_path, own_cache
):
    # Qwen3 leaves the empty thinking of earlier turns out.
    folder = scripted_folder(tmp_path / "m", real_tokenizer("qwen3"), None, {"": SAID})
    chat = ChatMLXCached(model=str(folder), max_tokens=40, thinking=False)
    first = chat.invoke(ASK, max_tokens=4)
    rest = chat.invoke([*ASK, first], continue_final=True)
    joined = AIMessage(first.text + rest.text, additional_kwargs=rest.additional_kwargs)
    told = chat.invoke([*ASK, joined, AGAIN]).response_metadata["cache"]  # warnings are errors
    assert (told["state"], told["reason"], told["message"]) == ("lost", "thinking", 2)
    edited = AIMessage("No.", additional_kwargs=rest.additional_kwargs)
    told = chat.explain([ASK[0], HumanMessage("Else?"), edited, AGAIN])
    assert (told["state"], told["reason"], told["message"]) == ("lost", "edited", 1)
