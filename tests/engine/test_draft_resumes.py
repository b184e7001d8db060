"""Answers resumed inside: what ran behind their end, and was taken back, is in none of their rows.

An answer's end hides a wrong row in a window that has wrapped: the next token overwrites it. Who
goes back by a few tokens, and on from there, reads it.
"""

import dataclasses

import pytest
from family import WINDOW
from played_drafts import plainly, playing, same, scheduler_over
from readers import request, together

from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine import batch as batch_module
from llm_mlx_promptcache.engine.request import Sampling

pytestmark = pytest.mark.drafts

# Windows alone, beside states, and in lists; one of states; one of rows.
KINDS = ["gemma3_text", "recurrent_gemma", "gpt_oss", "baichuan_m1", "llama4", "mamba2", "llama"]
CELLS = [
    pytest.param(kind, unforced, marks=[pytest.mark.soak] * (unforced != 8 or place > 1))
    for place, kind in enumerate(KINDS)
    for unforced in (0, 8)
]
FREE = 14  # letters before the one that the grammar forces: more than a window, and than _UNFORCED
ENDS = (FREE, FREE - 3, FREE + 5)
ANSWER = f"[b-d]{{{FREE}}}7[b-d]{{20}}"


def asked(**more):
    """A question whose answer is letters, a token each, of which one is forced."""
    sampling = Sampling(temperature=3, seed=4)
    return request("Two?", regex=ANSWER, max_tokens=60, sampling=sampling, **more)


def resumed_inside(scheduler, one, text):
    """The answer `text` to `one` resumed at each place; returns tokens that were reused at most."""
    most = 0
    for at in (4, *range(WINDOW + 1, len(text) + 1, 2), len(text)):
        begun = (*one.messages, Message("assistant", text[:at]))
        on = dataclasses.replace(
            request("Two?", max_tokens=4, logprobs=1, drafts=False),
            messages=begun,
            continue_final=True,
        )
        warm = together(scheduler, on)[0].last
        same(warm, plainly(scheduler, on).last)
        most = max(most, warm.usage.cached)
    return most


@pytest.mark.parametrize(("kind", "unforced"), CELLS)
def test_law_1_inside_an_answer_behind_whose_end_a_token_was_forced(
    loaded_kind, monkeypatch, kind, unforced
):
    """Run in a pass of its own, or with the token before it where that is waited for (0)."""
    monkeypatch.setattr(batch_module, "_UNFORCED", unforced)
    scheduler = scheduler_over(loaded_kind(kind))
    one = asked(drafts=False)
    whole = plainly(scheduler, one).last
    assert whole.text[FREE] == "7"
    stopped = together(scheduler, dataclasses.replace(one, stop=(whole.text[:FREE],)))[0].last
    assert stopped.usage.generated == FREE
    assert resumed_inside(scheduler, one, whole.text[:FREE]) > stopped.usage.prompt


@pytest.mark.parametrize(
    ("kind", "ends"),
    [("gemma3_text", (FREE,))]
    + [pytest.param(kind, ENDS, marks=pytest.mark.soak) for kind in KINDS],
)
def test_law_17_inside_an_answer_that_was_drafted(loaded_kind, kind, ends):
    loaded = loaded_kind(kind)
    one = asked()
    whole = plainly(scheduler_over(loaded), one).last
    behind = 0
    for seed, end in enumerate(ends, 1):
        scheduler = scheduler_over(loaded)
        with playing(whole.ids, seed, wrong=0.0, widest=16) as made:
            stopped = together(scheduler, dataclasses.replace(one, stop=(whole.text[:end],)))
        assert stopped[0].last.usage.generated == end
        behind += made[-1].accepted - stopped[0].last.usage.accepted
        resumed_inside(scheduler, one, whole.text[:end])
    assert behind  # right guesses behind an end were taken back
