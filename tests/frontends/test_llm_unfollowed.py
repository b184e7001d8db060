"""Options that a model can't follow are refused in words; what an earlier turn said is told."""

import pytest
from langchain_core.messages import HumanMessage

from langchain_adapter import ChatMLXCached
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.pool import engine_for
from llm_mlx_promptcache.engine.request import GenerationRequest

NONE = "thinking is asked for, and this model has none"


def test_c11_thinking_is_refused_where_the_model_has_none(quick_home):
    ask = ("-m", "mlx-cached", "Go.", "-o", "max_tokens", "4")
    _, said = quick_home.llm(*ask, "-o", "thinking", "1", status=1)
    assert said == f"Error: {NONE}; leave it out, or use one that has"
    quick_home.llm(*ask, "-o", "thinking", "0")


@pytest.mark.usefixtures("own_cache")
def test_what_an_earlier_turn_asked_for_is_told_and_not_refused(tiny_llama):
    request = GenerationRequest(
        (Message("user", "Go."),), max_tokens=4, thinking=True, if_possible=("thinking",)
    )
    *_, last = engine_for(str(tiny_llama())).generate(request)
    assert last.notes == ("thinking was asked for, and this model has none",)


@pytest.mark.usefixtures("own_cache")
def test_langchain_refuses_it_too(tiny_llama):
    chat = ChatMLXCached(model=str(tiny_llama()), max_tokens=4, thinking=True)
    with pytest.raises(ValueError, match=NONE):
        chat.invoke([HumanMessage("Go.")])
