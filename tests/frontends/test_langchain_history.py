"""The places where a conversation may be cut, and the lengths at which it must be."""

import random

import pytest
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from langchain_adapter.history import (
    Length,
    checked_size,
    clauses_of,
    first_within,
    is_due,
    receding,
    safe_cuts,
)


def calling(*ids, invalid=()):
    return AIMessage(
        "",
        tool_calls=[{"name": "look", "args": {}, "id": id} for id in ids],
        invalid_tool_calls=[{"name": "look", "args": "{", "id": id, "error": ""} for id in invalid],
    )


def result(id):
    return ToolMessage("seen", tool_call_id=id)


HUMAN, SAID = HumanMessage("Go."), AIMessage("Gone.")


@pytest.mark.parametrize(
    ("messages", "cuts"),
    [
        ([], []),
        ([HUMAN], []),
        ([HUMAN, SAID, HUMAN], [1, 2]),
        ([HUMAN, calling("a"), result("a"), SAID], [1, 3]),
        ([HUMAN, calling("a", "b"), result("b"), result("a"), SAID], [1, 4]),
        # A call that still waits stays where it is, with all that is behind it.
        ([HUMAN, SAID, HUMAN, calling("a", "b"), result("a"), HUMAN], [1, 2, 3]),
        # One that nobody answered before the model went on waits no more.
        ([HUMAN, calling("a"), HUMAN, SAID, HUMAN], [1, 2, 3, 4]),
        # A call that could not be read is answered too, where it is.
        ([HUMAN, calling(invalid=["a"]), result("a"), SAID], [1, 3]),
        ([HUMAN, calling(invalid=["a"]), HUMAN], [1, 2]),
        ([HUMAN, calling(invalid=["a"]), HUMAN, result("a"), SAID], [1, 4]),
        # Ids that come again mean the last call of that id.
        ([calling("a"), result("a"), calling("a"), result("a"), SAID], [2, 4]),
        # A result without a call begins no part either.
        ([HUMAN, SAID, result("z"), HUMAN], [1, 3]),
        (
            [
                HUMAN,
                calling("a"),
                HumanMessage([{"type": "tool_result", "tool_use_id": "a", "content": "x"}]),
                SAID,
            ],
            [1, 3],
        ),
    ],
)
def test_a_call_and_its_results_stay_together(messages, cuts):
    assert safe_cuts(messages) == cuts


def a_conversation(chance):
    messages, count = [], 0
    for _ in range(chance.randrange(1, 9)):
        messages.append(HumanMessage("Go."))
        for _ in range(chance.randrange(3)):
            ids = [f"call-{count + n}" for n in range(chance.randrange(1, 4))]
            count += len(ids)
            messages += [calling(*ids), *map(result, chance.sample(ids, len(ids)))]
        messages.append(AIMessage("Gone."))
    return messages


def test_random_conversations_are_cut_as_langchain_cuts_them():
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(200):
        messages = a_conversation(chance)
        cuts = safe_cuts(messages)
        for cut in cuts:
            made = {call["id"] for one in messages[:cut] for call in getattr(one, "tool_calls", [])}
            kept = {getattr(one, "tool_call_id", None) for one in messages[cut:]}
            assert not made & kept
        keep = chance.randrange(1, 8)
        theirs = SummarizationMiddleware(FakeListChatModel(responses=[]), keep=("messages", keep))
        ours = max((cut for cut in cuts if cut <= len(messages) - keep), default=0)
        assert ours == theirs._determine_cutoff_index(messages)


TRIGGERS = (
    ("tokens", 3000),
    ("messages", 5),
    {"tokens": 100, "messages": 5},
    [("fraction", 0.5), {"tokens": 100, "messages": 9}],
    None,
)


@pytest.mark.parametrize("trigger", TRIGGERS, ids=str)
def test_triggers_mean_what_langchain_means(trigger):
    model = FakeListChatModel(responses=[], profile={"max_input_tokens": 1000})
    theirs = SummarizationMiddleware(model, trigger=trigger)
    for count in (1, 5, 9):
        for tokens in (1, 99, 100, 499, 500, 3000):
            due = is_due(clauses_of(trigger), Length(count, tokens, 1000))
            assert due == theirs._should_summarize([HUMAN] * count, tokens), (count, tokens)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("tokens", 0), "more than 0"),
        (("fraction", 1.5), "to 1"),
        (("words", 3), "'words'; use fraction, tokens, messages"),
        (("tokens", 2.5), "whole number"),
        (("messages", True), "whole number"),
        (("fraction", "half"), "'half' fraction"),
        (7, "keep is '7'"),
    ],
)
def test_a_size_that_is_none_is_refused_by_name(given, told):
    with pytest.raises(ValueError, match=told):
        checked_size("keep", given)


def test_a_fraction_of_nothing_known_and_an_empty_clause_are_refused():
    with pytest.raises(ValueError, match="nobody knows how many tokens"):
        is_due(clauses_of(("fraction", 0.5)), Length(1, 1, None))
    with pytest.raises(ValueError, match="asks for nothing"):
        clauses_of([{}])


def test_what_is_kept_weighs_no_more_than_was_said_and_is_never_nothing():
    assert first_within([5, 5, 5], 10) == 1
    assert first_within([5, 5, 5], 15) == 0
    assert first_within([5, 5, 50], 10) == 2


def test_attempts_step_back_faster_and_faster_and_end_at_the_first():
    assert list(receding([])) == []
    assert list(receding([3])) == [3]
    assert list(receding(range(1, 11))) == [10, 9, 7, 3, 1]
