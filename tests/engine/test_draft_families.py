"""Law 17 in every family that may be drafted: each way of choosing, restarts, and what they leave.

An answer is drafted with guesses that are right and wrong, put off, and begun again where its
layers were lost; it is asked for again by another process. No token may change, and the next turn
over what was kept is the one over nothing.
"""

import dataclasses
import itertools
import random

import families
import pytest
from played_drafts import WAYS, asked, disturbed, next_turn, plainly, playing, same, scheduler_over
from readers import together
from test_kinds import KINDS

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.engine.draft_probe import prove

pytestmark = pytest.mark.drafts

NAMES = [family.name for family in families.FAMILIES]
# Each kind greedily and in one other way, each way over rows; in the soak every kind in every way.
PAIRS = [
    pytest.param(
        kind,
        way,
        marks=[pytest.mark.soak] * (number > 0 and place not in (0, 1 + number % (len(WAYS) - 1))),
    )
    for number, kind in enumerate(KINDS)
    for place, way in enumerate(WAYS)
]


def told(reader):
    """The text that a reader was given, piece by piece."""
    return "".join(one.text for one in reader.events if type(one).__name__ == "TextDelta")


def hold_next_turn(scheduler, one, event):
    """The next turn over what an answer left in the layers is the one over nothing; returns it."""
    again = dataclasses.replace(next_turn(one, event), drafts=False)
    warm = together(scheduler, again)[0].last
    same(warm, plainly(scheduler, again).last)
    return warm


def hold_to_law_17(loaded, drafted, way, seeds, most=40):
    """Answers with drafts played into them equal those without; returns counts of drafts."""
    cache = PromptCache("100MB")
    scheduler = scheduler_over(loaded, cache)
    one, right = asked(scheduler, most, way)
    offered = accepted = 0
    for seed in range(seeds):
        reader, played = drafted(scheduler, one, right, seed)
        last = reader.last
        same(last, right)
        assert told(reader) == right.text
        assert last.usage.drafted - played.offered == last.usage.accepted - played.accepted == 0
        offered, accepted = offered + played.offered, accepted + played.accepted
        warm = hold_next_turn(scheduler, one, last)
    assert cache.check() == []
    return offered, accepted, warm.usage.cached - len(last.ids)


def hold_through_restarts(loaded, way, folder, seed, most=40):
    """The same where answers begin again, and in another process over what they left.

    Returns the usage of that one's answer, and of its next turn.
    """
    store = DiskStore(folder)
    before = scheduler_over(loaded, PromptCache("100MB", store))
    one, right = asked(before, most, way)
    with playing(right.ids, seed):
        last = disturbed(before, one, random.Random(seed))
    same(last, right)
    hold_next_turn(before, one, last)
    before.settle(last=True)
    cache = PromptCache("100MB", DiskStore(folder))
    later = scheduler_over(loaded, cache)
    again = together(later, one)[0].last
    same(again, right)
    warm = hold_next_turn(later, one, again)
    assert cache.check() + store.check() == []
    return again.usage, warm.usage


@pytest.mark.parametrize(("kind", "way"), PAIRS)
def test_law_17_no_token_changes_in_any_kind_of_layer(loaded_kind, drafted, kind, way):
    offered, accepted, behind = hold_to_law_17(loaded_kind(kind), drafted, way, 3)
    assert 0 < accepted < offered
    assert behind > 0  # the answer's rows are reused too


@pytest.mark.parametrize(("kind", "way"), list(zip(KINDS, itertools.cycle(WAYS), strict=False)))
def test_law_17_nor_behind_restarts(loaded_kind, tmp_path, kind, way):
    seed = KINDS.index(kind)
    again, warm = hold_through_restarts(loaded_kind(kind), way, tmp_path, seed)
    assert again.accepted > again.generated / 2  # what stands on the disk is drafted from
    assert warm.cached >= again.prompt + again.generated


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_law_17_every_family(loaded_kind, drafted, tmp_path, name, soak_share):
    if NAMES.index(name) % round(1 / soak_share):
        pytest.skip("another share")
    loaded = loaded_kind(name)
    may = not prove(loaded.model).why
    if families.BY_NAME[name].chunked:  # nor is it law 1's: without drafts too warm is not cold
        assert not may
        return
    for number, way in enumerate(WAYS):
        offered, accepted, _ = hold_to_law_17(loaded, drafted, way, 2, most=24)
        assert bool(offered) == bool(accepted) == may
        again, _ = hold_through_restarts(loaded, way, tmp_path / way, number, most=24)
        assert bool(again.drafted) == bool(again.accepted) == may
