"""Every word of LangChain's to the engine's and back, with an engine that says what it is told."""

import asyncio
from dataclasses import replace

import pytest
from langchain_core.load import dumpd, load
from langchain_core.messages import (
    AIMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    messages_from_dict,
    messages_to_dict,
)
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.tools import tool
from scripted_engine import Person, add, finished

from langchain_adapter import ChatMLXCached
from langchain_adapter.messages import from_langchain
from llm_mlx_promptcache.chat.messages import Generated, Message, ToolCall, check_messages
from llm_mlx_promptcache.engine.events import (
    CallArguments,
    CallName,
    Logprob,
    Progress,
    ReasoningDelta,
    TextDelta,
    TokenLogprobs,
)
from llm_mlx_promptcache.models.kv_settings import KVSettings


@tool
def clock() -> str:
    """Tell the time."""
    return "noon"


def test_messages_of_every_kind():
    call = {"name": "add", "args": {"a": 1, "b": 2}, "id": "c1"}
    legacy = {"function": {"name": "add", "arguments": '{"a": 1}'}, "type": "function", "id": "c2"}
    thought = {"type": "thinking", "thinking": "hm", "signature": "x"}
    used = {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1, "b": 2}}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": "3", "is_error": True}
    given = [
        SystemMessage("Be good."),
        SystemMessage("Be brief.", additional_kwargs={"__openai_role__": "developer"}),
        HumanMessage([{"type": "text", "text": "Add "}, "them."], name="Ann"),
        AIMessage([thought, {"type": "text", "text": "So."}, used], tool_calls=[call]),
        ToolMessage("3", tool_call_id="c1", name="add"),
        AIMessage("", additional_kwargs={"tool_calls": [legacy], "reasoning_content": "well"}),
        ToolMessage([{"type": "text", "text": "oh"}], tool_call_id="c2", status="error"),
        HumanMessage([result, {"type": "text", "text": "Go on."}]),
        ChatMessage("Mine.", role="assistant"),
        FunctionMessage("4", name="add"),
    ]
    told = (ToolCall("add", {"a": 1, "b": 2}, "c1"),)
    assert list(from_langchain(given)) == [
        Message("system", "Be good."),
        Message("developer", "Be brief."),
        Message("user", "Add them.", name="Ann"),
        Message("assistant", "So.", reasoning="hm", tool_calls=told),
        Message("tool", "3", tool_call_id="c1", name="add"),
        Message("assistant", "", reasoning="well", tool_calls=(ToolCall("add", {"a": 1}, "c2"),)),
        Message("tool", "oh", tool_call_id="c2", is_error=True),
        Message("tool", "3", tool_call_id="c1", is_error=True),
        Message("user", "Go on."),
        Message("assistant", "Mine."),
        Message("tool", "4", name="add"),
    ]


def test_blocks_of_an_answer_that_say_nothing_are_passed_over():
    blocks = [
        {"type": "mcp_list_tools", "tools": [{"name": "a"}]},
        {"type": "text", "text": "So."},
        {"type": "non_standard", "value": {"type": "reasoning.encrypted", "data": "x"}},
    ]
    assert list(from_langchain([AIMessage(blocks)])) == [Message("assistant", "So.")]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}]), "'image_url' block"),
        (AIMessage([{"type": "audio", "data": "x"}]), "'audio' block"),
        (AIMessage([{"type": "refusal_2", "parts": [{"text": "No."}]}]), "'refusal_2' block"),
        (AIMessage([{"type": "refusal", "refusal": "No."}]), "'refusal' block"),
        (HumanMessage([{"type": "cache_point"}]), "'cache_point' block"),
        (ToolMessage([{"type": "image", "url": "x"}], tool_call_id="1"), "'image' block"),
        (ChatMessage("Hi.", role="wizard"), "role 'wizard'"),
    ],
)
def test_what_is_no_text_is_refused_by_its_place(message, said):
    with pytest.raises(ValueError, match=said) as refused:
        list(from_langchain([HumanMessage("Hi."), message]))
    assert str(refused.value).startswith("messages[1] ")


@pytest.mark.parametrize(
    ("given", "how", "name"),
    [
        (None, "auto", ""),
        ("auto", "auto", ""),
        ("none", "none", ""),
        (False, "none", ""),
        ("any", "any", ""),
        ("required", "any", ""),
        (True, "any", ""),
        ("add", "any", "add"),
        ({"type": "function", "function": {"name": "clock"}}, "any", "clock"),
        ({"type": "tool", "name": "add"}, "any", "add"),
        ({"type": "any"}, "any", ""),
    ],
)
def test_every_tool_choice(engine, given, how, name):
    ChatMLXCached().bind_tools([clock, add], tool_choice=given).invoke("Hi.")
    (asked,) = engine.asked
    assert (asked.tool_choice, asked.tool, len(asked.tools)) == (how, name, 2)


def test_a_tool_choice_that_is_none_is_refused_when_it_is_bound():
    for choice in ("sub", 7, {"type": "function", "function": {"name": "sub"}}, {"kind": "any"}):
        with pytest.raises(ValueError, match=r"tool_choice .*add"):
            ChatMLXCached().bind_tools([add], tool_choice=choice)


def test_strict_tools_make_the_same_prompt(engine):
    for strict in (None, False, True):
        ChatMLXCached().bind_tools([clock], strict=strict).invoke("Hi.")
    plain, loose, strict = (asked.tools[0]["function"] for asked in engine.asked)
    assert plain == loose
    assert "strict" not in strict
    assert strict["parameters"]["additionalProperties"] is False


def test_parallel_calls_and_formats_beside_tools(engine):
    chat = ChatMLXCached().bind_tools(
        [add], parallel_tool_calls=False, response_format=Person, tool_choice="auto"
    )
    chat.invoke("Hi.")
    (asked,) = engine.asked
    assert asked.max_calls == 1
    assert asked.schema == Person.model_json_schema()
    assert asked.tool_choice == "auto"


def test_the_policy_calls_first_where_nobody_chose(engine):
    chat = ChatMLXCached(tool_policy="call_first")
    history = [
        HumanMessage("Hi."),
        AIMessage("", tool_calls=[_call()]),
        ToolMessage("3", tool_call_id="c1"),
    ]
    chat.bind_tools([add]).invoke("Hi.")
    chat.bind_tools([add]).invoke(history)
    chat.bind_tools([add], tool_choice="auto").invoke("Hi.")
    chat.invoke("Hi.")
    assert [asked.tool_choice for asked in engine.asked] == ["any", "auto", "auto", "auto"]


def _call():
    return {"name": "add", "args": {"a": 1, "b": 2}, "id": "c1"}


def test_settings_of_the_model_and_of_one_call(engine):
    chat = ChatMLXCached(
        temperature=0.5, seed=3, max_tokens=9, stop=["x"], cache_salt="me", kv_bits=8, thinking=True
    )
    chat.bind(max_tokens=4, on_disk=False, repetition_penalty=1.1).invoke("Hi.", stop=["y"])
    chat.invoke("Hi.", logit_bias={7: -1.0}, logprobs=2, regex="[ab]")
    one, other = engine.asked
    assert (one.max_tokens, one.on_disk, one.stop) == (4, False, ("y",))
    assert (one.cache_salt, one.kv, one.thinking) == ("me", KVSettings(8), True)
    assert (one.sampling.temperature, one.sampling.repetition_penalty) == (0.5, 1.1)
    assert (other.max_tokens, other.stop, other.logprobs) == (9, ("x",), 2)
    assert (other.sampling.logit_bias, other.sampling.seed) == (((7, -1.0),), 3)
    assert other.regex == "[ab]"
    with pytest.raises(ValueError, match="'temprature' is no setting"):
        chat.invoke("Hi.", temprature=1)


def test_a_call_gives_what_the_model_itself_takes(engine):
    chat = ChatMLXCached(stop="END")
    chat.invoke("Hi.")
    chat.invoke("Hi.", stop="over")
    chat.bind(temperature="0.5", kv_bits="8").invoke("Hi.", logit_bias={"7": 1})
    assert [request.stop for request in engine.asked] == [("END",), ("over",), ("END",)]
    last = engine.asked[2]
    assert (last.sampling.temperature, last.kv) == (0.5, KVSettings(8))
    assert last.sampling.logit_bias == ((7, 1.0),)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "warm"),
        ("max_tokens", "many"),
        ("tool_policy", "call_last"),
        ("stop", [1]),
        ("output_version", 1),
        ("thinking", "perhaps"),
    ],
)
def test_a_wrong_value_of_a_call_is_named(engine, name, value):
    with pytest.raises(ValueError, match=f"^{name} is ") as caught:
        ChatMLXCached().invoke("Hi.", **{name: value})
    assert len(str(caught.value).splitlines()) == 1
    assert engine.asked == []


SPOKEN = [
    Progress(20, 20, 12),
    ReasoningDelta("Let me "),
    ReasoningDelta("see."),
    TextDelta("I "),
    TextDelta("add."),
    CallName("c1", "add"),
    CallArguments("c1", '{"a": 1, '),
    CallArguments("c1", '"b": 2}'),
    CallName("c2", "clock"),
    CallArguments("c2", "{}"),
    finished(
        "I add.",
        [ToolCall("add", {"a": 1, "b": 2}, "c1"), ToolCall("clock", {}, "c2")],
        reasoning="Let me see.",
    ),
]


def merged(chunks):
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return whole


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_a_stream_put_together_is_the_invocation(engine, version):
    engine.events = SPOKEN
    chat = ChatMLXCached(output_version=version)
    whole, chunks = chat.invoke("Hi."), list(chat.stream("Hi."))
    streamed = merged(chunks)

    async def both():
        return await chat.ainvoke("Hi."), [chunk async for chunk in chat.astream("Hi.")]

    awaited, later = asyncio.run(both())
    for one in (streamed, awaited, merged(later)):
        assert one.tool_calls == whole.tool_calls
        assert one.additional_kwargs == whole.additional_kwargs
        assert one.usage_metadata == whole.usage_metadata
        assert one.response_metadata == whole.response_metadata
        assert _plain(one.content_blocks) == _plain(whole.content_blocks)
        assert list(from_langchain([one])) == list(from_langchain([whole]))
    kinds = [block["type"] for block in whole.content_blocks]
    assert kinds == ["reasoning", "text", "tool_call", "tool_call"]
    assert [call["name"] for call in whole.tool_calls] == ["add", "clock"]
    assert sum(chunk.usage_metadata is not None for chunk in chunks) == 1
    assert chunks[-1].chunk_position == "last"
    assert engine.ended == 4


def test_one_call_may_want_blocks(engine):
    engine.events = SPOKEN
    of_model, of_call = ChatMLXCached(output_version="v1"), ChatMLXCached()
    whole = of_model.invoke("Hi.")
    assert [block["type"] for block in whole.content][-2:] == ["tool_call", "tool_call"]
    one = of_call.invoke("Hi.", output_version="v1")
    assert (one.content, one.response_metadata) == (whole.content, whole.response_metadata)
    streamed = merged(list(of_call.stream("Hi.", output_version="v1")))
    wanted = merged(list(of_model.stream("Hi.")))
    assert _plain(streamed.content) == _plain(wanted.content)
    assert streamed.tool_calls == wanted.tool_calls == whole.tool_calls


def _plain(blocks):
    return [{k: v for k, v in block.items() if k != "index"} for block in blocks]


def test_text_after_a_call_stays_text_in_blocks(engine):
    call = ToolCall("clock", {}, "c1")
    spoken = [TextDelta("So:"), CallName("c1", "clock"), CallArguments("c1", "{}")]
    engine.events = [*spoken, TextDelta(" Done."), finished("So: Done.", [call])]
    streamed = merged(list(ChatMLXCached(output_version="v1").stream("Hi.")))
    assert streamed.text == "So: Done."
    assert [call["name"] for call in streamed.tool_calls] == ["clock"]


def test_usage_and_metadata(engine):
    likely = TokenLogprobs(
        Logprob(5, "He", -0.1), (Logprob(5, "He", -0.1), Logprob(6, "A", -2.0, (65,)))
    )
    engine.events = [
        finished("Hello", logprobs=(likely,), peak_bytes=7, stopped_by="!", from_disk=5)
    ]
    answer = ChatMLXCached(model="mine").invoke("Hi.")
    assert answer.usage_metadata == {
        "input_tokens": 20,
        "output_tokens": 3,
        "total_tokens": 23,
        "input_token_details": {"cache_read": 12},
        "output_token_details": {"reasoning": 1},
    }
    told = answer.response_metadata
    assert (told["model_name"], told["model_provider"]) == ("mine", "mlx-cached")
    assert told["cache"] == {
        "read": 12,
        "from_memory": 7,
        "from_disk": 5,
        "prefilled": 8,
        "why": "told off after token 12",
    }
    assert (told["finish_reason"], told["stop_sequence"], told["peak_bytes"]) == ("stop", "!", 7)
    assert told["logprobs"]["content"][0]["top_logprobs"][1] == {
        "token": "A",
        "bytes": [65],
        "logprob": -2.0,
    }
    assert ChatMLXCached()._get_ls_params()["ls_provider"] == told["model_provider"]


def test_the_record_of_an_answer_survives_storage_and_streams(engine):
    engine.events = SPOKEN
    chat = ChatMLXCached()
    for answer in (chat.invoke("Hi."), merged(list(chat.stream("Hi.")))):
        (stored,) = messages_from_dict(messages_to_dict([answer]))
        (message,) = from_langchain([stored])
        assert message.generated.ids == (5, 6, 2)
        assert message.unchanged("model")
        edited = stored.model_copy(update={"content": "I won't."})
        assert not next(from_langchain([edited])).unchanged("model")


def test_a_reader_who_stops_frees_the_engine(engine):
    engine.events = [TextDelta("a"), TextDelta("b"), finished("ab")]
    chat = ChatMLXCached()
    stream = chat.stream("Hi.")
    next(stream)
    stream.close()

    async def first():
        later = chat.astream("Hi.")
        await anext(later)
        await later.aclose()

    asyncio.run(first())
    assert engine.ended == 2


class Counted(BaseRateLimiter):
    count = 0

    def acquire(self, *, blocking=True):
        Counted.count += 1
        return True

    async def aacquire(self, *, blocking=True):
        return self.acquire()


def test_a_rate_limiter_is_asked_once_a_call(engine):
    chat = ChatMLXCached(rate_limiter=Counted())
    chat.invoke("Hi.")
    list(chat.stream("Hi."))
    asyncio.run(chat.ainvoke("Hi."))
    assert Counted.count == 3


@pytest.mark.filterwarnings("ignore:The function `load` is in beta")
def test_it_is_stored_and_loaded_without_weights():
    chat = ChatMLXCached(model="mine", max_tokens=9, cache_salt="me", template_arguments={"a": 1})
    again = load(
        dumpd(chat), allowed_objects=[ChatMLXCached], valid_namespaces=["langchain_adapter"]
    )
    assert again == chat


def test_the_profile_tells_what_is_known_before_loading(tmp_path):
    (tmp_path / "config.json").write_text('{"text_config": {"max_position_embeddings": 4096}}')
    profile = ChatMLXCached(model=str(tmp_path), max_tokens=9).profile
    assert (profile["max_input_tokens"], profile["max_output_tokens"]) == (4096, 9)
    assert profile["tool_calling"]
    assert profile["structured_output"]
    assert not profile["image_inputs"]
    with_adapter = ChatMLXCached(model=f"{tmp_path}@{tmp_path / 'adapter'}").profile
    assert with_adapter["max_input_tokens"] == 4096
    for nowhere in (str(tmp_path / "none"), "~nobody-has-this-name/x"):
        assert "max_input_tokens" not in ChatMLXCached(model=nowhere).profile
    assert ChatMLXCached(profile={"name": "mine"}).profile == {"name": "mine"}


def test_results_of_calls_that_could_not_be_read_are_taken():
    wrong = {"name": "w", "args": "{", "id": "1", "error": "no JSON", "type": "invalid_tool_call"}
    history = [
        HumanMessage("a"),
        AIMessage("", invalid_tool_calls=[wrong]),
        ToolMessage("arguments are no JSON", tool_call_id="1", status="error"),
        HumanMessage("b"),
    ]
    messages = list(from_langchain(history))
    check_messages(messages)
    assert messages[1].tool_calls == (ToolCall("w", {"arguments": "{"}, "1"),)
    # Its record is of what was shown: the exact tokens are still replayed.
    kept = Generated.of([1, 2], "", "model")
    ours = replace(messages[1], generated=kept)
    assert ours.unchanged("model")
    assert not replace(ours, unmade=0).unchanged("model")
