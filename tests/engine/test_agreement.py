"""Law 18: ranks whose caches hold different things go on from one place, which all of them have."""

import functools
import random
from array import array
from functools import partial

import families
import pytest
import trials
from grouped import GroupEnded, each, end, group_of

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.insertion import Rows
from llm_mlx_promptcache.cache.layers.layout import Cuts
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.engine.agreed_kv import AgreedKV, Belongings
from llm_mlx_promptcache.engine.agreement import lease_alike
from llm_mlx_promptcache.engine.kv import KVManager
from llm_mlx_promptcache.engine.terms import Terms
from llm_mlx_promptcache.models.threads import leave_thread

NS, PATH = trials.NAMESPACE, trials.PATH
# Rows, windows, states, both, lists of both, chunks.
KINDS = ["llama", "gemma3_text", "mamba2", "qwen3_5", "falcon_h1", "llama4", "longcat_flash"]
PROMPT = [*PATH, 7, 8, 9]


@functools.cache
def trial_of(name):
    return trials.Trial(families.BY_NAME[name])


class Prompt:
    """A prompt in one rank's cache, as a request fetches it; `looks` counts."""

    def __init__(self, cache, ids, rows=Rows.COPY):
        self._cache, self._ids, self._rows = cache, ids, rows
        self.taken = []

    def reach(self, most):
        return self._cache.reach(NS, self._ids, most)

    def take(self, most):
        self.taken.append(most)
        return self._cache.fetch(NS, self._ids, 8, rows=self._rows, most=most)

    def put_back(self, lease):
        self._cache.take_back(NS, self._ids, lease)


def leases(caches, prompt, rows=Rows.COPY):
    """The leases of a prompt by each rank's cache, all at once; errors are raised."""
    ranks = group_of(len(caches))
    prompts = [Prompt(cache, array("I", prompt), rows) for cache in caches]

    def work(one):
        try:
            return lease_alike(one, array("I", prompt), prompts[one.group.rank])
        finally:
            leave_thread()

    for one in ranks:
        one.start()
    try:
        found = each(ranks, work)
    finally:
        end(ranks)
    for lease in found:
        if isinstance(lease, BaseException):
            raise lease
    return found, prompts


def kept(trial, length, stops=trials.STOPS, store=None):
    cache = PromptCache("100MB", store)
    if length:
        trial.keep(cache, PATH[:length], [stop for stop in stops if stop <= length])
    return cache


@pytest.mark.parametrize("name", KINDS)
def test_law_18_different_caches_go_on_from_one_place(name):
    trial, random_ = trial_of(name), random.Random(name)
    for shorter in (0, 30, 38, len(PATH)):
        caches = [kept(trial, len(PATH)), kept(trial, shorter)]
        random_.shuffle(caches)
        (one, other), prompts = leases(caches, PROMPT)
        assert one.cached == other.cached <= shorter
        assert [prompt.taken for prompt in prompts] == [[one.cached]] * 2  # found without layers
        assert one.matched == other.matched == len(PATH)
        assert one.cached >= (30 if shorter >= 30 else 0)
        for cache, lease in zip(caches, (one, other), strict=True):
            trial.check(lease, PROMPT, 4)
            assert cache.check() == []


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "mamba2", "qwen3_5"])
def test_law_18_places_that_only_some_have_are_no_place_for_any(name):
    """Checkpoints lie at different places, and each rank's best one is none of the other's."""
    trial = trial_of(name)
    caches = [
        kept(trial, len(PATH), (13, 45)),
        kept(trial, len(PATH), (13, 30)),
        kept(trial, 50, (13, 22)),
    ]
    found, _ = leases(caches, PROMPT)
    assert len({lease.cached for lease in found}) == 1
    assert found[0].cached == (50 if trial.anywhere() else 13)
    for lease in found:
        trial.check(lease, PROMPT, 4)


@pytest.mark.parametrize("name", ["llama", "mamba2"])
def test_law_18_one_damaged_file_holds_all_back_and_is_told(tmp_path, name):
    trial = trial_of(name)
    caches = []
    for rank in range(2):
        store = DiskStore(tmp_path / str(rank))
        kept(trial, len(PATH), store=store).flush()
        caches.append(PromptCache("100MB", store))
    alone = caches[1].reach(NS, array("I", PROMPT), len(PATH)).resume_at
    assert alone == len(PATH)
    for file in (tmp_path / "1").rglob("*.safetensors"):
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.write_bytes(data)
    (one, other), prompts = leases(caches, PROMPT)
    assert one.cached == other.cached == 0
    assert prompts[0].taken == [len(PATH), 0]  # it had taken it all, and gave it back
    assert (one.why.reason, other.why.reason) == ("ranks", "unreadable")
    assert str(one.why) == "another rank holds less: all of them can go on from token 0"
    counted = caches[0].stats()
    assert (counted["hits"], counted["misses"], counted["tokens_reused"]) == (0, 1, 0)
    assert counted["misses_by_reason"] == {"ranks": 1}


def test_rows_that_were_given_and_put_back_are_still_there(tmp_path):
    """The other rank turns out to hold less only when it reads: what moved out returns."""
    trial = trial_of("llama")
    store = DiskStore(tmp_path)
    kept(trial, len(PATH), store=store).flush()
    caches = [kept(trial, len(PATH)), PromptCache("100MB", store)]
    for file in tmp_path.rglob("*.safetensors"):
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.write_bytes(data)
    (one, other), _ = leases(caches, PROMPT, Rows.GIVE)
    assert one.cached == other.cached < len(PATH)
    assert caches[0].reach(NS, array("I", PROMPT), len(PATH)).resume_at == len(PATH)
    assert caches[0].check() == []


def test_law_2_most_is_never_the_whole_prompt():
    trial = trial_of("llama")
    cache = kept(trial, len(PATH))
    for most in (len(PATH), 1000):
        assert cache.fetch(NS, PATH, most=most).cached == len(PATH) - 1
    assert cache.fetch(NS, PATH, most=-3).cached == 0


def test_who_is_kept_from_nothing_by_others_is_told_its_own_reason():
    trial = trial_of("llama")
    cache = kept(trial, 30)
    prompt = [*PATH[:30], 99, 98, 97]
    told = cache.fetch(NS, prompt, most=30).why
    assert told == cache.fetch(NS, prompt).why
    assert told.reason == "diverged"
    assert cache.fetch(NS, prompt, most=29).why.reason == "ranks"


def test_law_18_prompts_that_differ_by_one_token_are_refused():
    ranks = group_of(2)
    caches = [PromptCache("1MB"), PromptCache("1MB")]
    prompts = [array("I", PROMPT), array("I", [*PROMPT[:-1], 1])]
    for one in ranks:
        one.start()
    try:
        found = each(
            ranks,
            lambda one: lease_alike(
                one, prompts[one.group.rank], Prompt(caches[one.group.rank], prompts[0])
            ),
        )
    finally:
        end(ranks)
    assert all(isinstance(error, GroupEnded) for error in found)
    assert str(found[0]) == "the ranks were given different prompts"


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "mamba2"])
def test_a_reach_counts_nothing_and_reads_nothing(name, tmp_path):
    trial = trial_of(name)
    store = DiskStore(tmp_path)
    kept(trial, len(PATH), store=store).flush()
    cache = PromptCache("100MB", store)
    before = cache.stats()
    ids = array("I", PROMPT)
    reach = partial(cache.reach, NS, ids)
    assert reach(len(PROMPT)) == (len(PATH), len(PATH))
    assert reach(30).resume_at == 30
    assert reach(0).resume_at == 0
    after = cache.stats()
    assert after == before


@pytest.mark.parametrize("unable", [None, 0, 1])
def test_law_18_what_one_rank_can_not_pin_none_has_pinned(monkeypatch, unable):
    model, terms = trial_of("llama").model, Terms(Cuts.ANYWHERE, True, "", 1, 1, True, True)
    ranks, path = group_of(2), array("I", PATH)

    def pin(kv, handle, path):
        if kv._name == f"rank {unable}":
            raise ValueError("only 3 of these tokens are in memory")

    monkeypatch.setattr(KVManager, "pin", pin)

    def work(one):
        mine = Belongings(PromptCache("1MB"), f"rank {one.group.rank}", "m")
        AgreedKV(model, mine, one, terms).pin(None, path)

    for one in ranks:
        one.start()
    try:
        found = [str(error) for error in each(ranks, work)]
    finally:
        end(ranks)
    if unable is None:
        assert found == ["None", "None"]
        return
    assert found[unable] == "only 3 of these tokens are in memory"
    assert found[1 - unable].startswith("another rank holds less than the 60 tokens to pin")
