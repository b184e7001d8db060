"""PrefixKeepingSummarization over layers that can't be cut: what a summary costs there, counted."""

from typing import NamedTuple

import conversations
import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import HumanMessage

from langchain_adapter import generation
from langchain_mlx_cached import ChatMLXCached, PrefixKeepingSummarization

SYSTEM = "You keep a lighthouse, and write down which ships you see. " * 4
QUESTION = "Write down what is needed."
MARK = 2  # tokens behind an answer


@pytest.fixture(params=["window", "hybrid"])
def chat(request, own_cache, tmp_path, monkeypatch):
    """A chat model of the kind, which says what its random weights have it say."""
    folder = conversations.write_model(tmp_path / "model")
    engine = conversations.engine_over(str(folder), request.param, tmp_path / "store")
    monkeypatch.setattr(generation, "engine_for", lambda reference, where: engine)
    yield ChatMLXCached(model=str(folder), max_tokens=12)
    engine.close()


class Call(NamedTuple):
    """One call of the model: whether it asked for a summary, and its tokens."""

    sums_up: bool
    prompt: int
    read: int
    total: int


class Calls(BaseCallbackHandler):
    """All calls of the model in their order."""

    def __init__(self):
        self.made, self._sums_up = [], False

    def on_chat_model_start(self, serialized, messages, **given):
        self._sums_up = messages[0][-1].text == QUESTION

    def on_llm_end(self, response, **given):
        usage = response.generations[0][0].message.usage_metadata
        read = usage["input_token_details"]["cache_read"]
        call = Call(self._sums_up, usage["input_tokens"], read, usage["total_tokens"])
        self.made.append(call)


def asked(number):
    return HumanMessage(f"Question {number}: which ships, from where, and how many? " * 3)


@pytest.mark.filterwarnings("ignore:a summary was cut by max_tokens")
def test_a_summary_prefills_its_question_and_other_turns_read_all_before_them(chat):
    middleware = PrefixKeepingSummarization(
        trigger=("messages", 7), keep=("messages", 3), summary_prompt=QUESTION
    )
    agent = create_agent(chat, [], system_prompt=SYSTEM, middleware=[middleware])
    calls, messages = Calls(), []
    for number in range(6):
        given = {"messages": [*messages, asked(number)]}
        messages = agent.invoke(given, {"callbacks": [calls]})["messages"]
    made = calls.made
    assert [call.sums_up for call in made] == [False, False, False, True, False, False, True, False]
    question = chat.get_num_tokens_from_messages([HumanMessage(QUESTION)])
    system = len(chat.get_token_ids(SYSTEM))
    for at, call in enumerate(made[1:], 1):
        if call.sums_up:
            # It goes on behind the last turn that it sums up, whose end mark is new.
            assert call.read == made[at - 2].total
            assert call.prompt - call.read <= question + MARK
        elif made[at - 1].sums_up:
            assert call.read >= system  # the summary stands behind it
        else:
            assert call.read == made[at - 1].total
