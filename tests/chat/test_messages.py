"""Checked message lists, and generated ids that survive every history and no damage."""

import base64
import json
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mlx_promptcache.chat.messages import Generated, Message, ToolCall, check_messages

IDS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def pack(raw):
    return base64.b64encode(zlib.compress(raw)).decode()


@settings(print_blob=True)
@given(IDS, st.text(), st.text(min_size=1, max_size=20))
def test_json_brings_back_what_was_generated(ids, content, fingerprint):
    made = Generated.of(ids, content, fingerprint)
    back = Generated.from_json(json.loads(json.dumps(made.to_json())))
    assert back == made
    assert back.ids == tuple(ids)
    assert back.matches(content, fingerprint)


def test_the_stored_form_stays_readable():
    stored = {
        "v": 1,
        "ids": pack(b"\x01\x00\x00\x00\x00\x02\x00\x00"),
        "fp": "a",
        "digest": Generated.of([], "Rome", "a").digest,
    }
    read = Generated.from_json(stored)
    assert read is not None
    assert read.ids == (1, 512)
    assert read.matches("Rome", "a")


@pytest.mark.parametrize(("content", "fingerprint"), [("Rome.", "a"), ("rome", "a"), ("Rome", "b")])
def test_an_edit_or_another_model_does_not_match(content, fingerprint):
    made = Generated.of([1, 2], "Rome", "a")
    assert made.matches("Rome", "a")
    assert not made.matches(content, fingerprint)


@settings(print_blob=True)
@given(st.sampled_from(["v", "ids", "fp", "digest"]), JSON)
def test_any_field_of_any_kind_gives_none_or_a_record(name, value):
    stored = Generated.of([5, 6], "Rome", "a").to_json()
    read = Generated.from_json({**stored, name: value})
    valid = name in ("fp", "digest") and isinstance(value, str) and value
    unchanged = stored[name] == value and type(value) is type(stored[name])
    assert (read is not None) == bool(valid or unchanged)


@pytest.mark.parametrize(
    "ids",
    [
        "",
        "é",
        "not base64!",
        base64.b64encode(b"not zlib").decode(),
        pack(bytes(8)) + "\n",
        pack(b"123"),
        pack(bytes(8))[:-8],
        base64.b64encode(zlib.compress(bytes(8)) + b"more").decode(),
        pack(bytes(4 * 2**20 + 4)),
    ],
)
def test_damaged_ids_give_none(ids):
    stored = Generated.of([5, 6], "Rome", "a").to_json()
    assert Generated.from_json(stored) is not None
    assert Generated.from_json({**stored, "ids": ids}) is None


def test_a_record_without_ids_keeps_how_its_prompt_was_rendered():
    made = Generated.of([], "Rome", "a", rendered={"date_string": "23 Nov 2026"})
    read = Generated.from_json(json.loads(json.dumps(made.to_json())))
    assert read == made
    assert read.rendered == {"date_string": "23 Nov 2026"}
    assert not Message("assistant", "Rome", read).unchanged("a")


def test_every_flipped_byte_gives_none():
    stored = Generated.of([5, 600, 7], "Rome", "a").to_json()
    raw = base64.b64decode(stored["ids"])
    for at in range(len(raw)):
        damaged = raw[:at] + bytes([raw[at] ^ 0x10]) + raw[at + 1 :]
        read = Generated.from_json({**stored, "ids": base64.b64encode(damaged).decode()})
        assert read is None or read.ids == (5, 600, 7), at


def test_a_bomb_gives_none_without_its_memory():
    import tracemalloc

    bomb = pack(bytes(400_000_000))
    stored = {**Generated.of([5], "Rome", "a").to_json(), "ids": bomb}
    tracemalloc.start()
    try:
        assert Generated.from_json(stored) is None
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("obj", [None, 1, "x", [], {}, {"v": 1}, object()])
def test_foreign_metadata_gives_none(obj):
    assert Generated.from_json(obj) is None


def test_no_repr_shows_text_or_tokens():
    shown = repr(Message("assistant", "secret", Generated.of([4711], "secret", "a")))
    assert "assistant" in shown
    assert "secret" not in shown
    assert "4711" not in repr(Generated.of([4711], "secret", "a"))


USER = Message("user", "What?")


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "messages is empty"),
        ([USER, Message("bot", "x")], r"messages\[1\].role is 'bot'"),
        ([Message("user", None)], r"messages\[0\].content is a NoneType"),
        ([Message("user", ["x"])], r"messages\[0\].content is a list"),
        ([USER, Message("user", "a\ud800")], r"messages\[1\].content .* at character 1"),
    ],
)
def test_refusals_name_index_and_field_in_one_line(messages, words):
    with pytest.raises(ValueError, match=words) as refused:
        check_messages(messages)
    assert "\n" not in str(refused.value)
    assert "a\ud800" not in str(refused.value)


CALL = ToolCall("weather", {"city": "Paris"}, "c1")
CALLS = Message("assistant", "", tool_calls=(CALL,))


def calls(*made):
    return [USER, Message("assistant", "", tool_calls=made), USER]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([USER, Message("tool", "24")], r"messages\[1\].role is 'tool', but no earlier answer"),
        ([Message("tool", "24"), USER], r"messages\[0\].role is 'tool', but no earlier answer"),
        (
            [USER, CALLS, Message("tool", "24", tool_call_id="c2")],
            r"messages\[2\].tool_call_id is 'c2', but no earlier answer",
        ),
        (
            [USER, CALLS, Message("tool", "24"), Message("tool", "25")],
            r"messages\[3\].role is 'tool', but no earlier answer",
        ),
        ([Message("user", "x", images=(b"",))], r"messages\[0\].images holds 1.*not supported yet"),
        ([Message("user", "x", reasoning="y")], r"messages\[0\].reasoning .* role 'user'"),
        ([Message("user", "x", tool_calls=(CALL,))], r"messages\[0\].tool_calls .* role 'user'"),
        ([Message("user", "x", tool_call_id="c1")], r"messages\[0\].tool_call_id .* role 'user'"),
        ([Message("user", "x", is_error=True)], r"messages\[0\].is_error .* role 'user'"),
        (calls(ToolCall("", {})), r"messages\[1\].tool_calls\[0\].name is empty"),
        (calls(ToolCall("f", "{}")), r"messages\[1\].tool_calls\[0\].arguments is a str"),
        (calls(ToolCall("f", {"a": {1}})), r"tool_calls\[0\].arguments holds a set"),
        (calls(ToolCall("f", {"a": float("nan")})), r"tool_calls\[0\].arguments holds nan"),
        (calls(ToolCall("f", {"a\ud800": 1})), r"a key in .*arguments has half a surrogate"),
        (calls(CALL, CALL), r"tool_calls\[1\].id is that of tool_calls\[0\]"),
    ],
)
def test_parts_that_do_not_fit_are_named(messages, words):
    with pytest.raises(ValueError, match=words) as refused:
        check_messages(messages)
    assert "\n" not in str(refused.value)


def test_arguments_nested_without_end_are_refused():
    nested = []
    nested.append(nested)
    with pytest.raises(ValueError, match="nested more than 64 deep"):
        check_messages(calls(ToolCall("f", {"a": nested})))


@pytest.mark.parametrize(
    "after",
    [
        [Message("tool", "24")],
        [Message("tool", "24", tool_call_id="c1", is_error=True)],
        [USER],
        [Message("tool", "24", tool_call_id="c1"), USER, Message("tool", "25", tool_call_id="c1")],
    ],
)
def test_what_may_follow_a_call(after):
    check_messages([USER, CALLS, *after])


ARGUMENTS = st.dictionaries(st.text(max_size=5), JSON.filter(lambda value: value == value))


@settings(print_blob=True)
@given(ARGUMENTS, st.text(), st.text())
def test_what_was_shown_survives_json_whatever_the_order_of_keys(arguments, content, reasoning):
    made = ToolCall("f", arguments, "c1")
    parts = {"reasoning": reasoning, "tool_calls": (made,)}
    kept = Generated.of([1], content, "a", rendered={"now": "x"}, **parts)
    back = Generated.from_json(json.loads(json.dumps(kept.to_json())))
    assert back == kept
    turned = ToolCall("f", dict(reversed(json.loads(json.dumps(arguments)).items())), "c2")
    assert back.matches(content, "a", reasoning=reasoning, tool_calls=(turned,))
    assert not back.matches(content, "a", reasoning=reasoning + "x", tool_calls=(made,))
    assert not back.matches(content, "a", reasoning=reasoning)


@pytest.mark.parametrize("rendered", [None, 1, "x", [], {}, {1: 2}, {"a": {1}}, {"a": "x" * 70000}])
def test_a_damaged_rendered_costs_no_record(rendered):
    stored = {**Generated.of([5, 6], "Rome", "a").to_json(), "rendered": rendered}
    read = Generated.from_json(stored)
    assert read.ids == (5, 6)
    assert read.rendered == {}


def test_no_repr_shows_what_is_asked_of_tools():
    secret = Message("assistant", "", tool_calls=(ToolCall("f", {"a": "secret"}, "id"),))
    assert "secret" not in repr(secret)
    assert "secret" not in repr(secret.tool_calls)


@pytest.mark.parametrize(
    "roles",
    ["u", "uu", "su", "ssu", "sdu", "auu", "uau", "uaau", "us", "usu"],
)
def test_unusual_orders_are_taken(roles):
    names = {"s": "system", "d": "developer", "u": "user", "a": "assistant", "t": "tool"}
    check_messages([Message(names[role], "text") for role in roles])


def test_an_empty_last_user_message_is_taken_after_another():
    check_messages([USER, Message("assistant", ""), Message("user", "")])
