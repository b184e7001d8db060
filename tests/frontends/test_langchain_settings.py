"""Settings of the model and of one call, and what is told before a model is loaded."""

import asyncio

import pytest
from langchain_core.rate_limiters import BaseRateLimiter

from langchain_adapter import ChatMLXCached
from llm_mlx_promptcache.models.kv_settings import KVSettings


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


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("temperature", "hot", "temperature is 'hot'"),
        ("tool_policy", "call_last", "tool_policy is 'call_last'"),
        ("output_version", 1, "output_version is '1'"),
        ("top_p", 3, "top_p is 3"),
        ("max_tokens", 0, "max_tokens is 0"),
        ("kv_bits", 5, "kv.bits is 5"),
        ("temprature", 1, "'temprature' is no setting of ChatMLXCached, and 'temperature' is"),
        ("num_predict", 9, "'num_predict' is no setting of ChatMLXCached, and 'max_tokens' is"),
        ("mood", "bad", "'mood' is no setting"),
    ],
)
def test_l9_what_is_set_is_checked_at_once(engine, name, value, told):
    chat = ChatMLXCached(temperature=0.5)
    before = chat.model_dump()
    with pytest.raises(ValueError, match=f"^{told}") as caught:
        setattr(chat, name, value)
    assert len(str(caught.value).splitlines()) == 1
    assert chat.model_dump() == before
    chat.invoke("Hi.")
    assert engine.asked[0].sampling.temperature == 0.5


OUT_OF_RANGE = {
    "temperature": (-1, "temperature is -1"),
    "max_tokens": (0, "max_tokens is 0"),
    "stop": ([""], "stop holds an empty string"),
    "top_p": (3, "top_p is 3"),
    "kv_bits": (5, "kv.bits is 5"),
    "max_calls": (0, "max_calls is 0"),
    "logprobs": (99, "logprobs is 99"),
    "logit_bias": ({3: float("nan")}, "logit_bias is nan for token 3"),
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_l9_what_is_out_of_range_is_refused_where_it_is_given_and_in_the_same_words(engine, name):
    value, told = OUT_OF_RANGE[name]
    chat = ChatMLXCached()
    words = []
    for give in (
        lambda: ChatMLXCached(**{name: value}),
        lambda: setattr(chat, name, value),
        lambda: chat.model_copy(update={name: value}),
        lambda: chat.invoke("Hi.", **{name: value}),
    ):
        with pytest.raises(ValueError, match=told) as refused:
            give()
        words.append(str(refused.value))
    made, *others = words
    assert set(others) == {others[0]}
    assert others[0] in made  # Pydantic says beside it that it is of the constructor
    assert engine.asked == []
    assert chat == ChatMLXCached()


def test_l9_what_is_set_is_what_a_call_would_give(engine):
    class Mine(ChatMLXCached):
        mood: str = "good"

    chat = Mine()
    chat.stop, chat.temperature, chat.mood, chat.max_tokens = "END", "0.5", "bad", None
    chat.cache, chat.tags = True, ["mine"]  # LangChain's own
    assert (chat.stop, chat.temperature, chat.mood) == (["END"], 0.5, "bad")
    with pytest.raises(ValueError, match=r"^mood is '3'"):
        chat.mood = 3
    chat.cache = None
    chat.invoke("Hi.")
    (asked,) = engine.asked
    assert (asked.stop, asked.max_tokens) == (("END",), None)


@pytest.mark.parametrize("name", ["logit_bias", "template_arguments"])
def test_l8_no_dict_is_an_empty_one(engine, name):
    chat = ChatMLXCached(**{name: None})
    setattr(chat, name, None)
    ChatMLXCached(**{name: {"5": 1}}).invoke("Hi.", **{name: None})
    (asked,) = engine.asked
    assert getattr(chat, name) == {}
    assert (asked.sampling.logit_bias, asked.template_arguments) == ((), {})


def test_l6_a_copy_takes_what_the_constructor_does(engine):
    chat = ChatMLXCached(temperature=0.5)
    made = chat.model_copy(update={"num_predict": 9, "stop": "END", "tags": ["mine"]})
    assert (made.max_tokens, made.stop, made.tags, made.temperature) == (9, ["END"], ["mine"], 0.5)
    assert chat == ChatMLXCached(temperature=0.5)
    assert chat.model_copy() == chat == chat.model_copy(deep=True)
    with pytest.raises(ValueError, match=r"^'temprature' is no setting"):
        chat.model_copy(update={"temprature": 1})
    with pytest.raises(ValueError, match=r"^temperature is 'hot'"):
        chat.model_copy(update={"temperature": "hot"})


def test_a_profile_is_that_of_the_model_that_is_set(tiny_llama, tmp_path):
    other = str(tiny_llama(context=512))
    chat = ChatMLXCached(max_tokens=9)
    copied = chat.model_copy(update={"model": other, "max_tokens": None})
    kept = ChatMLXCached(profile={"max_input_tokens": 7}).model_copy(update={"model": other})
    chat.model, chat.max_tokens = other, None
    assert chat.profile == copied.profile == ChatMLXCached(model=other, max_tokens=None).profile
    assert (chat.profile["max_input_tokens"], kept.profile) == (512, {"max_input_tokens": 7})
