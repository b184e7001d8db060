"""Drafter: what it guesses, how much it looks at, and what it forgets; no model is run."""

import random
from array import array

from llm_mlx_promptcache.engine.drafts import Drafter, Source, joined


def test_a_drafter_copies_what_was_said_before():
    text = list(range(100, 160))
    drafter = Drafter(array("I", [*text, 1, 2]), stop_ids=[9])
    assert drafter.propose(array("I", [*text, 1]), 2, 16) == []
    path = array("I", [*text, 1, 2])
    for at, token in enumerate(text[5:8]):
        found = drafter.propose(path, token, 16)
        path.append(token)
        assert bool(found) is (at == 2)
    assert found == text[8:12]


def test_a_place_among_many_alike_is_found_without_sorting_them():
    source = Source(array("I", [5] * 100_000))
    assert list(source.behind((5, 5), 5)) == list(range(100_000, 100_000 - 16, -1))
    table = source._table
    source._table = table[0], Handed(table[1])
    for third in (None, 5):
        list(source.behind((5, 5), third))
    assert source._table[1].handed <= 2 * 16


class Handed:
    """Positions; how many were handed out is counted."""

    def __init__(self, places):
        self._places = places
        self.handed = 0

    def __getitem__(self, at):
        found = self._places[at]
        self.handed += len(found)
        return found


def test_looking_takes_no_more_work_where_texts_are_longer(monkeypatch):
    """Places looked at in a pass, and tokens compared at each: all runs of three are common."""
    look = Drafter._agreed
    most = {}
    for size in (1_000, 100_000):
        words = random.Random(7)
        prompt = array("I", (words.randrange(5) for _ in range(size)))
        others = [array("I", (words.randrange(5) for _ in range(1_000))) for _ in range(64)]
        drafter, path, looks = Drafter(prompt, (), others=joined(others)), prompt[:-1], []
        monkeypatch.setattr(
            Drafter, "_agreed", lambda *asked, looks=looks: looks.append(look(*asked)) or looks[-1]
        )
        most[size] = 0
        for number in range(200):
            looks.clear()
            token = words.randrange(5) if number else prompt[-1]
            drafter.expects(path)
            drafter.propose(path, token, 16)
            most[size] = max(most[size], len(looks))
            assert max(looks, default=0) <= 32
            path.append(token)
    assert 32 < most[1_000] <= most[100_000] + 3 <= 3 * 16 + 6


def test_the_first_token_waits_for_no_table():
    """Tables of long texts are made while the first pass runs, and not before it."""
    text = array("I", [*range(50), *range(50)])
    drafter = Drafter(text, others=joined([text]))
    assert not drafter.expects(text[:-1])
    assert drafter._prompt._table is None
    assert drafter.expects(text + array("I", [0, 1]))
    known = Drafter(text, before=array("I", [7, 8]))
    assert known.expects(text[:-1])
    assert known.propose(text[:-1], text[-1], 9) == [7, 8]


def test_a_prompt_of_one_token_can_be_drafted_behind():
    drafter = Drafter(array("I", [5]), others=joined([array("I", range(50))]))
    path = array("I")
    for token in (5, 6, 7):
        drafter.expects(path)
        found = drafter.propose(path, token, 4)
        path.append(token)
    assert found == [8, 9, 10, 11]


def test_tokens_that_were_taken_back_may_come_again():
    """Among others like them, in any order, and as if they had never been heard."""
    prompt = array("I", range(100, 110))
    for seed in range(300):
        draw = random.Random(seed)
        drafter, path = Drafter(prompt), array("I", prompt)
        for _ in range(40):
            token = draw.randrange(3)
            drafter.expects(path)
            drafter.propose(path, token, 8)
            path.append(token)
            if draw.random() < 0.2:
                del path[len(prompt) - 1 + draw.randrange(len(path) - len(prompt) + 1) :]
        drafter.expects(path)
        fresh = Drafter(prompt)
        fresh.expects(path)
        own = {pair: places for pair, places in drafter._answer.items() if places}
        assert own == fresh._answer, seed
        assert drafter._text.tokens == fresh._text.tokens == path, seed
