"""Promises kept in every conversation: prefixes, whole renderings, and paths that continue."""

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mlx_promptcache.chat.messages import Generated, Message
from llm_mlx_promptcache.chat.rendering import render

FINGERPRINT = "model-a"
FAMILIES = ["chatml", "smollm2", "trim", "gemma", "mistral", "thinking", "empty_think", "json"]
# These show every answer as it was, so every one of them must be replayed.
FAITHFUL = ["chatml", "smollm2", "trim", "gemma"]

WORDS = st.sampled_from(
    [
        "Paris",
        "capital",
        " is",
        " the",
        "\n",
        " ",
        "é",
        "🙂",
        "東",
        "a",
        "answer0x",
        "<",
        "im_end|>",
    ]
)
# Text that looks like a special token would be one, which is the template's business.
TEXT = st.lists(WORDS, max_size=8).map("".join).filter(lambda text: "<im_end|>" not in text)
SPOKEN = TEXT.map(lambda text: "Q" + text)
THOUGHTS = st.sampled_from(["", "", "", "<think>\nhm\n</think>\n\n"])
ANSWERS = st.tuples(
    st.builds(str.__add__, THOUGHTS, TEXT), st.sampled_from(["kept", "cut", "edited", "plain"])
)
CONVERSATION = st.lists(st.tuples(SPOKEN, ANSWERS), min_size=1, max_size=5)


def message(tokenizer, text, kind):
    if kind == "plain":
        return Message("assistant", text)
    if kind == "edited":
        return tokenizer.answer(text, content=text + "!")
    return tokenizer.answer(text, stop=kind == "kept")


def check(tokenizer, messages, transcript):
    """Boundaries in order inside the ids, at text that all of the conversation begins with."""
    positions = [boundary.position for boundary in transcript.boundaries]
    assert positions == sorted(set(positions))
    assert all(0 < position < len(transcript.ids) for position in positions)
    if transcript.replayed == 0:
        assert transcript.ids.tolist() == tokenizer.encode(tokenizer.whole(messages))[0]


@pytest.mark.parametrize("family", FAMILIES)
@settings(print_blob=True, deadline=None, max_examples=60)
@given(data=st.data())
def test_every_turn_extends_the_path_of_the_turn_before(chat, family, data):
    tokenizer = chat(family)
    system = data.draw(st.none() | SPOKEN)
    messages = [] if system is None else [Message("system", system)]
    path, must_extend = array("I"), False
    for asked, (said, kind) in data.draw(CONVERSATION):
        messages.append(Message("user", asked))
        transcript = render(messages, tokenizer, fingerprint=FINGERPRINT)
        check(tokenizer, messages, transcript)
        # What earlier turns left behind in memory changes nothing.
        assert transcript == render(messages, chat(family), fingerprint=FINGERPRINT)
        if must_extend:
            assert transcript.ids[: len(path)] == path
        answer = message(tokenizer, said, kind)
        messages.append(answer)
        generated = answer.generated.ids if kind in ("kept", "cut") else ()
        path = transcript.ids + array("I", generated)
        must_extend = bool(generated) and family in FAITHFUL
    assert transcript.replayed <= len(messages) // 2


@pytest.mark.parametrize("family", FAMILIES)
@settings(print_blob=True, deadline=None, max_examples=40)
@given(data=st.data())
def test_a_boundary_is_what_a_fork_there_begins_with(chat, family, data):
    """Another last question shares all ids up to the boundary before it."""
    tokenizer = chat(family)
    messages = [Message("system", data.draw(SPOKEN))]
    for asked, (said, kind) in data.draw(CONVERSATION):
        messages += [Message("user", asked), message(tokenizer, said, kind)]
    forks = [
        render([*messages, Message("user", asked)], tokenizer, fingerprint=FINGERPRINT)
        for asked in ("One?", "Two!")
    ]
    # The last one is behind the questions, which differ.
    same = [b for b in forks[0].boundaries[:-1] if b in forks[1].boundaries[:-1]]
    # The system's and each earlier message's, for a template that leaves the past as it was.
    if family in ("chatml", "smollm2", "trim"):
        assert len(same) == len(messages)
    for boundary in same:
        end = boundary.position
        assert forks[0].ids[:end] == forks[1].ids[:end]


@settings(print_blob=True, deadline=None, max_examples=60)
@given(data=st.data())
def test_ids_of_answers_never_leave_their_place(chat, data):
    """Any ids at all are replayed whole, the text round them is the template's."""
    tokenizer = chat()
    size = tokenizer.tokenizer.get_vocab_size()
    (stop,) = tokenizer.stop_ids
    tokens = st.integers(0, size - 1).filter(lambda token: token != stop)
    messages, expected, before = [], array("I"), ""
    for asked in data.draw(st.lists(SPOKEN, min_size=1, max_size=4)):
        ids = [*data.draw(st.lists(tokens, max_size=6)), stop]
        said = tokenizer.decode(ids[:-1])
        messages.append(Message("user", asked))
        text = f"{before}<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
        expected += array("I", tokenizer.encode(text)[0] + ids)
        messages.append(Message("assistant", said, Generated.of(ids, said, FINGERPRINT)))
        before = "\n"
    text = "\n<|im_start|>user\nEnd?<|im_end|>\n<|im_start|>assistant\n"
    expected += array("I", tokenizer.encode(text)[0])
    transcript = render([*messages, Message("user", "End?")], tokenizer, fingerprint=FINGERPRINT)
    assert transcript.ids == expected
