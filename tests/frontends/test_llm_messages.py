"""llm's prompts -> the engine's requests, on what llm itself builds and what its log gives back."""

import json
import logging

import llm
import pytest
from llm.cli import load_conversation
from llm.parts import (
    AttachmentPart,
    Message,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from llm_mlx_promptcache.chat.messages import Generated, ToolCall
from llm_mlx_promptcache.engine.events import CallArguments, CallName, ReasoningDelta, TextDelta
from llm_mlx_promptcache.llm_adapter.models import MlxCached
from llm_mlx_promptcache.llm_adapter.records import PromptSettings


def shown(request):
    """A request's messages, as pairs of role and text."""
    return [(message.role, message.content) for message in request.messages]


def beta(word: str) -> str:
    """Say it twice."""
    return word * 2


def alpha() -> str:
    """Say a."""
    return "a"


def test_the_system_prompt_comes_first_wherever_it_is_said(scripted):
    model = MlxCached()
    history = [llm.user("One?"), llm.assistant("One.")]
    model.prompt("Two?", system="S").text()
    model.prompt("Two?", messages=history, system="S").text()
    model.chain("Two?", messages=history, system="S").text()
    conversation = model.conversation()
    conversation.prompt("One?", system="S").text()
    conversation.prompt("Two?").text()
    conversation.prompt("Three?", system="T").text()
    roles = [[role for role, _ in shown(asked)] for asked in scripted.requests]
    assert roles == [
        ["system", "user"],
        ["system", "user", "assistant", "user"],
        ["system", "user", "assistant", "user"],
        ["system", "user"],
        ["system", "user", "assistant", "user"],
        ["system", "user", "assistant", "user", "assistant", "user"],
    ]
    systems = [asked.messages[0].content for asked in scripted.requests]
    assert systems == ["S", "S", "S", "S", "S", "T"]


def test_system_messages_that_are_repeated_beside_the_history_stand_once_where_they_were(scripted):
    """llm-chat-completions-server gives all of them as `system=` too, joined."""
    early = [llm.system("A"), llm.system("B"), llm.user("One?"), llm.assistant("One.")]
    late = [*early, llm.user("Two?"), llm.assistant("Two."), llm.system("C")]
    MlxCached().prompt("Two?", messages=early, system="A\n\nB").text()
    MlxCached().prompt("Three?", messages=late, system="A\n\nB\n\nC").text()
    MlxCached().prompt("Three?", messages=late, system="D").text()
    one, other, new = map(shown, scripted.requests)
    said = [("system", "A"), ("system", "B"), ("user", "One?"), ("assistant", "One.")]
    assert one == [*said, ("user", "Two?")]
    assert other == [*one, ("assistant", "Two."), ("system", "C"), ("user", "Three?")]
    assert new == [("system", "D"), *other[1:]]


def test_a_user_message_said_twice_in_a_row_is_said_once(scripted):
    history = [llm.user("One?"), llm.assistant("One."), llm.user("Two?")]
    MlxCached().prompt("Two?", messages=history).text()
    MlxCached().prompt("Three?", messages=history).text()
    one, other = map(shown, scripted.requests)
    assert one == [("user", "One?"), ("assistant", "One."), ("user", "Two?")]
    assert other == [*one, ("user", "Three?")]


def test_fragments_are_in_the_user_message_and_in_the_system_prompt(scripted):
    MlxCached().prompt("Q?", fragments=["F1", "F2"], system="S", system_fragments=["G"]).text()
    assert shown(scripted.requests[0]) == [("system", "G\n\nS"), ("user", "F1\nF2\nQ?")]
    # Where a model whose layers can't be cut is to be resumed with another question.
    assert scripted.requests[0].messages[-1].stable == len("F1\nF2")


def test_the_tool_loop_comes_back_as_calls_and_their_results(scripted):
    scripted.answers = [
        [CallName("c1", "beta"), CallArguments("c1", '{"wo'), CallArguments("c1", 'rd": "x"}')],
        [TextDelta("Done.")],
    ]
    chain = MlxCached().chain("Say x twice.", tools=[beta, alpha])
    assert chain.text() == "Done."
    first, second = scripted.requests
    assert [tool["function"]["name"] for tool in first.tools] == ["beta", "alpha"]
    assert first.tools == second.tools
    assert first.tools[0]["function"]["parameters"]["required"] == ["word"]
    _, answer, result = second.messages
    assert answer.tool_calls == (ToolCall("beta", {"word": "x"}, "c1"),)
    assert (result.role, result.content, result.name) == ("tool", "xx", "beta")
    assert (result.tool_call_id, result.is_error) == ("c1", False)


def test_a_tool_that_fails_or_is_unknown_answers_with_an_error(scripted):
    def broken() -> str:
        raise ValueError("no such luck")

    scripted.answers = [
        [CallName("c1", "broken"), CallName("c2", "nobody")],
        [TextDelta("Sorry.")],
    ]
    MlxCached().chain("Go.", tools=[broken]).text()
    results = scripted.requests[1].messages[2:]
    assert [result.is_error for result in results] == [True, True]
    assert "no such luck" in results[0].content
    assert "nobody" in results[1].content


def test_a_call_that_must_be_made_is_made_once(scripted):
    call = [CallName("c1", "alpha"), CallArguments("c1", "{}")]
    scripted.answers = [call, [TextDelta("Done.")]]
    MlxCached().chain("Go.", tools=[alpha], options={"tool_choice": "any"}).text()
    assert [request.tool_choice for request in scripted.requests] == ["any", "auto"]


def test_tools_are_chosen_in_openais_words_and_by_name(scripted):
    call = [CallName("c1", "alpha"), CallArguments("c1", "{}")]
    scripted.answers = [call, [TextDelta("Done.")], call, [TextDelta("Done.")]]
    for choice in ("required", "alpha"):
        MlxCached().chain("Go.", tools=[alpha], options={"tool_choice": choice}).text()
    asked = [(request.tool_choice, request.tool) for request in scripted.requests]
    # After the result the model is free, else the loop would have no end.
    assert asked == [("any", ""), ("auto", ""), ("any", "alpha"), ("auto", "")]
    with pytest.raises(ValueError, match=r"tool_choice is 'gamma'; .* required.*\(alpha\)"):
        MlxCached().prompt("Go.", tools=[alpha], tool_choice="gamma").text()


def test_two_tools_of_one_name_are_one(scripted):
    MlxCached().prompt("Go.", tools=[alpha, beta, alpha]).text()
    assert [tool["function"]["name"] for tool in scripted.requests[0].tools] == ["alpha", "beta"]


def test_a_tool_without_parameters_has_an_empty_object_of_them(scripted):
    tool = llm.Tool(name="now", description=None, input_schema={}, implementation=lambda: "1")
    MlxCached().prompt("Go.", tools=[tool]).text()
    assert scripted.requests[0].tools[0]["function"] == {
        "name": "now",
        "parameters": {"type": "object", "properties": {}},
    }


def test_an_answer_comes_back_from_the_log_with_its_tokens(scripted, logged):
    scripted.answers = [
        [ReasoningDelta("Hm."), TextDelta("Yes"), TextDelta(".")],
        [TextDelta("No.")],
    ]
    model = MlxCached()
    logged.log(model.conversation().prompt("Well?", system="S"))
    conversation = load_conversation(None, database=logged.path)
    conversation.model = model
    conversation.prompt("And?").text()
    answer = scripted.requests[1].messages[2]
    assert (answer.role, answer.content, answer.reasoning) == ("assistant", "Yes.", "Hm.")
    assert answer.unchanged("scripted")
    assert answer.generated.ids == scripted.told[0].ids


@pytest.mark.parametrize(
    "events",
    [
        [],
        [ReasoningDelta("Hm.")],
        [TextDelta("Yes.")],
        [CallName("c1", "alpha"), CallArguments("c1", "{}")],
        [TextDelta("Wait."), CallName("c1", "alpha"), CallArguments("c1", '{"é": 1.0}')],
        [ReasoningDelta("Hm."), CallName("c1", "alpha"), CallName("c2", "alpha")],
        [TextDelta("a"), CallName("c1", "alpha"), CallArguments("c1", "{}"), TextDelta("b")],
    ],
)
def test_whatever_an_answer_is_made_of_its_record_survives(events, scripted, logged):
    scripted.answers = [events]
    logged.log(MlxCached().conversation().prompt("Well?", tools=[alpha]))
    (message,) = load_conversation(None, database=logged.path).loaded_messages[1:]
    from llm_mlx_promptcache.llm_adapter.messages import _translated

    (answer,) = _translated(Message.from_dict(json.loads(json.dumps(message.to_dict()))))
    assert answer.unchanged("scripted")
    calls = {event.id for event in events if isinstance(event, CallName)}
    assert {call.id for call in answer.tool_calls} == calls


def test_an_edited_answer_is_taken_as_it_reads(scripted):
    scripted.answers = [[TextDelta("Yes.")]]
    first = MlxCached().prompt("Well?")
    first.text()
    (answer,) = first.messages()
    answer.parts[0].text = "No."
    MlxCached().prompt("And?", messages=[llm.user("Well?"), answer]).text()
    assert not scripted.requests[1].messages[1].unchanged("scripted")


@pytest.mark.parametrize(
    "foreign",
    [
        {"mlx-cached": None},
        {"mlx-cached": "text"},
        {"mlx-cached": {"v": 99, "ids": 3}},
        {"mlx-cached": {"v": 1, "ids": "!", "fp": "f", "digest": "d", "asked": [1]}},
        {"mlx-cached": {"asked": {"model": "mlx-cached", "tools": 3, "kv_bits": "x"}}},
        {"anthropic": {"signature": "s"}},
    ],
)
def test_foreign_and_damaged_metadata_is_no_error(foreign, scripted):
    answer = Message("assistant", [TextPart("Yes.", provider_metadata=foreign)])
    MlxCached().prompt("And?", messages=[llm.user("Well?"), answer]).text()
    message = scripted.requests[0].messages[1]
    assert (message.content, message.generated) == ("Yes.", None)
    assert scripted.requests[0].kv is None


def test_another_providers_parts_are_told_without_what_only_it_can_use(scripted):
    answer = Message(
        "assistant",
        [
            ReasoningPart("", redacted=True),
            ToolCallPart("web_search", {"q": "x"}, "srv1", server_executed=True),
            ToolResultPart("web_search", "found", "srv1", server_executed=True),
            TextPart("It is."),
        ],
    )
    MlxCached().prompt("And?", messages=[llm.user("Well?"), answer]).text()
    assert shown(scripted.requests[0])[1] == ("assistant", "It is.")
    assert scripted.requests[0].messages[1].tool_calls == ()


def test_another_model_may_answer_in_between(scripted, logged):
    scripted.answers = [[TextDelta("One.")], [TextDelta("Three.")]]
    model = MlxCached()
    first = model.conversation().prompt("One?")
    first.text()
    between = llm.assistant("Two.")
    model.prompt("Three?", messages=[llm.user("One?"), *first.messages(), between]).text()
    _, mine, other, _ = scripted.requests[1].messages
    assert mine.unchanged("scripted")
    assert other.generated is None


def test_attachments_are_refused_in_words(scripted):
    image = llm.Attachment(type="image/png", content=b"x")
    told = "attachment \\(image/png\\)"
    with pytest.raises(ValueError, match="does not support attachments"):
        MlxCached().prompt("What is it?", attachments=[image]).text()
    history = [Message("user", [TextPart("Look."), AttachmentPart(image)]), llm.assistant("Yes.")]
    with pytest.raises(ValueError, match=told):
        MlxCached().prompt("What is it?", messages=history).text()

    def picture():
        return llm.ToolOutput("Here.", attachments=[image])

    scripted.answers = [[CallName("c1", "picture")]]
    with pytest.raises(ValueError, match=told):
        MlxCached().chain("Show me.", tools=[picture]).text()


def test_tools_that_got_lost_are_told(scripted, caplog):
    scripted.answers = [[TextDelta("One.")], [TextDelta("Two.")], [TextDelta("Three.")]]
    model = MlxCached()
    first = model.prompt("Go.", tools=[beta, alpha])
    first.text()
    history = [llm.user("Go."), *first.messages()]
    with caplog.at_level(logging.WARNING):
        model.prompt("More.", messages=history, tools=[alpha, beta]).text()
        assert not caplog.records
        third = model.prompt("More.", messages=history, tools=[alpha])
        third.text()
    (record,) = caplog.records
    assert "beta" in record.getMessage()
    assert "alpha" not in record.getMessage()
    assert third.response_json["lost_tools"] == ["beta"]


def test_a_schema_holds_to_the_end_of_a_tool_loop(scripted):
    schema = {"type": "object", "properties": {"word": {"type": "string"}}}
    call = [CallName("c1", "alpha"), CallArguments("c1", "{}")]
    again = [CallName("c2", "alpha"), CallArguments("c2", "{}")]
    scripted.answers = [call, again, [TextDelta('{"word": "a"}')], [TextDelta("a")]]
    model = MlxCached()
    conversation = model.conversation()
    conversation.chain("Go.", tools=[alpha], schema=schema).text()
    conversation.chain("And now?", tools=[alpha]).text()
    assert [request.schema for request in scripted.requests] == [schema, schema, schema, None]


def test_what_an_answer_carries_is_small():
    assert PromptSettings("mlx-cached").to_json() == {"model": "mlx-cached"}
    whole = PromptSettings("m", True, 8, "n", ("a",), {"type": "object"})
    assert PromptSettings.from_json(json.loads(json.dumps(whole.to_json()))) == whole
    assert Generated.from_json(whole.to_json()) is None
