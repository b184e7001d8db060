"""The words that other chat models have for settings mean the same here; others are refused."""

import warnings

import pytest
from scripted_engine import add

from langchain_adapter import ChatMLXCached
from langchain_adapter.foreign_words import WHY_NOT

PEERS = {
    "model_name": ("model", "some/mine", "some/mine"),
    "max_completion_tokens": ("max_tokens", 5, 5),
    "num_predict": ("max_tokens", -1, None),
    "stop_sequences": ("stop", ["x"], ["x"]),
    "reasoning": ("thinking", True, True),
}


@pytest.mark.parametrize("word", PEERS)
def test_l6_a_peers_word_is_ours(engine, word):
    name, given, meant = PEERS[word]
    chat = ChatMLXCached(**{word: given})
    assert getattr(chat, name) == meant
    chat.invoke("Hi.")
    ChatMLXCached().invoke("Hi.", **{word: given})
    ChatMLXCached().bind(**{word: given}).invoke("Hi.")
    made, called, bound = engine.asked
    assert made == called == bound


def test_both_words_at_once_are_refused():
    with pytest.raises(ValueError, match="max_completion_tokens is given, and means max_tokens"):
        ChatMLXCached(max_tokens=5, max_completion_tokens=6)
    with pytest.raises(ValueError, match="give one of them"):
        ChatMLXCached().invoke("Hi.", model="a", model_name="b")
    assert ChatMLXCached(num_predict=5, max_completion_tokens=5).max_tokens == 5


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("temprature", "'temperature'"),
        ("model_nam", "'model'"),
        ("max_completion_token", "'max_tokens'"),
        ("use_disk", "is no setting"),
        ("kv_bit", "'kv_bits'"),
    ],
)
def test_l6_what_is_not_known_is_refused_by_name(engine, word, near):
    for ask in (
        lambda: ChatMLXCached(**{word: 1}),
        lambda: ChatMLXCached().invoke("Hi.", **{word: 1}),
        lambda: ChatMLXCached().bind(**{word: 1}).invoke("Hi."),
    ):
        with pytest.raises(ValueError, match=f"'{word}' is no setting") as refused:
            ask()
        assert near in str(refused.value)
        assert "cache_salt" in str(refused.value)
    assert engine.asked == []


@pytest.mark.parametrize("word", WHY_NOT)
def test_l6_a_word_of_others_is_told_what_there_is_for_it(word):
    with pytest.raises(ValueError, match=f"'{word}' is no setting of ChatMLXCached: ") as refused:
        ChatMLXCached(**{word: 1})
    assert WHY_NOT[word] in str(refused.value)
    assert "it has cache_salt" not in str(refused.value)
    with pytest.raises(ValueError, match="is no setting") as refused:
        setattr(ChatMLXCached(), word, 1)
    assert WHY_NOT[word] in str(refused.value)


@pytest.mark.parametrize("word", ["num_ctx_", "topics", "logit", "num_keep", "penalize_newline"])
def test_l6_what_is_near_to_nothing_is_not_guessed(word):
    with pytest.raises(ValueError, match=f"'{word}' is no setting of ChatMLXCached; it has"):
        ChatMLXCached(**{word: 1})


def test_a_class_of_ones_own_has_settings_of_its_own(engine):
    class Mine(ChatMLXCached):
        mood: str = "good"

    assert Mine(mood="bad", model_name="x").mood == "bad"
    with pytest.raises(ValueError, match="'mod' is no setting of"):
        Mine(mod="bad")


def test_a_servers_words_mean_nothing_here(engine):
    plain, chat = ChatMLXCached(), ChatMLXCached(timeout=60, max_retries=2, api_key="x")
    for one in (plain, chat):
        one.invoke("Hi.", timeout=5)
    assert engine.asked[0] == engine.asked[1]


def test_l8_none_is_what_a_setting_is_where_nothing_is_said(engine):
    unsaid = dict.fromkeys(["temperature", "top_p", "top_k", "min_p", "seed", "stop", "thinking"])
    unsaid |= dict.fromkeys(["repetition_penalty", "presence_penalty", "frequency_penalty"])
    ChatMLXCached().invoke("Hi.")
    ChatMLXCached(**unsaid).invoke("Hi.")
    ChatMLXCached().invoke("Hi.", **unsaid)
    assert engine.asked[0] == engine.asked[1] == engine.asked[2]


def test_l8_an_empty_list_of_stops_stops_nothing(engine):
    chat = ChatMLXCached(stop=["x"])
    chat.invoke("Hi.", stop=[])
    chat.invoke("Hi.")
    ChatMLXCached(stop=[]).invoke("Hi.")
    assert [request.stop for request in engine.asked] == [(), ("x",), ()]
    assert [request.max_tokens for request in engine.asked] == [8192] * 3
    chat.invoke("Hi.", max_tokens=None)
    assert engine.asked[-1].max_tokens is None


@pytest.mark.parametrize("level", ["high", {"effort": "high"}])
def test_how_much_reasoning_is_the_templates_word(level):
    with pytest.raises(ValueError, match=r"reasoning is .*reasoning_effort"):
        ChatMLXCached(reasoning=level)


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": 2}, 2),
        ({"logprobs": True, "top_logprobs": 3}, 3),
        ({"top_logprobs": 3}, 3),
        ({"logprobs": True, "top_logprobs": 0}, 0),
    ],
)
def test_probabilities_are_asked_for_as_openai_does(engine, given, asked):
    ChatMLXCached(**given).invoke("Hi.")
    ChatMLXCached().invoke("Hi.", **given)
    assert [request.logprobs for request in engine.asked] == [asked, asked]
    with pytest.raises(ValueError, match="top_logprobs is 3 and logprobs is False"):
        ChatMLXCached(logprobs=False, top_logprobs=3).invoke("Hi.")


def test_l8_probabilities_have_the_bytes_of_their_tokens(own_cache, tiny_llama):
    chat = ChatMLXCached(model=str(tiny_llama()), max_tokens=12)
    answer = chat.invoke("Hi.", logprobs=True, top_logprobs=2)
    told = answer.response_metadata["logprobs"]["content"]
    assert len(told) == 12
    data = bytes(byte for token in told for byte in token["bytes"])
    assert data.decode("utf-8", "replace") == answer.content
    for token in told:
        assert len(token["top_logprobs"]) == 2
        # Greedy: the chosen one is the likeliest.
        assert token["top_logprobs"][0] == {k: token[k] for k in ("token", "bytes", "logprob")}
    (alone,) = {len(t["top_logprobs"]) for t in _content(chat.invoke("Hi.", logprobs=True))}
    assert alone == 0
    assert "logprobs" not in chat.invoke("Hi.").response_metadata


def _content(answer):
    return answer.response_metadata["logprobs"]["content"]


def test_l1_langchains_cache_is_told_from_ours():
    with pytest.warns(UserWarning, match="use_cache=False"):
        ChatMLXCached(cache=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given in ({"use_cache": True}, {"use_cache": False}):
            ChatMLXCached(cache=False, **given)
        ChatMLXCached()
        ChatMLXCached(cache=None)


def test_a_tool_choice_in_any_words(engine):
    for choice in ("required", "any", "add"):
        ChatMLXCached().bind_tools([add], tool_choice=choice).invoke("Hi.")
    assert [(r.tool_choice, r.tool) for r in engine.asked] == [
        ("any", ""),
        ("any", ""),
        ("any", "add"),
    ]
