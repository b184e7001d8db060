"""Stop strings, however the text is cut into pieces."""

from hypothesis import given
from hypothesis import strategies as st

from llm_mlx_promptcache.engine.stopping import StopText

texts = st.text("ab\n", max_size=20)


def expected(text, stops):
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return text[: min(ends)[1]] if ends else text


@given(st.lists(texts, max_size=8), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
def test_the_text_before_the_first_stop_is_shown_and_no_more(pieces, stops):
    stopping, shown = StopText(stops), ""
    for piece in pieces:
        shown += stopping.feed(piece)
        assert expected("".join(pieces), stops).startswith(shown)
    assert shown + stopping.rest() == expected("".join(pieces), stops)


def test_after_a_hit_nothing_comes():
    stopping = StopText(["X"])
    assert stopping.feed("abXcd") == "ab"
    assert stopping.hit
    assert stopping.feed("ef") == ""
