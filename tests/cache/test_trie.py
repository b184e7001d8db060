"""PromptTrie against a plain dictionary of paths, and its moves."""

import copy
import pickle
import random
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_mlx_promptcache.cache import trie as trie_module
from llm_mlx_promptcache.cache.trie import PromptTrie, as_tokens, common_prefix

paths = st.lists(st.integers(0, 2), min_size=1, max_size=12)


def shared(a, b):
    count = 0
    while count < min(len(a), len(b)) and a[count] == b[count]:
        count += 1
    return count


@given(st.lists(paths, max_size=12), paths)
def test_search_agrees_with_a_dictionary(stored, wanted):
    trie, plain = PromptTrie(), {}
    for number, path in enumerate(stored):
        assert trie.add("m", path, number) == plain.get(tuple(path))
        plain[tuple(path)] = number
    found = trie.search("m", wanted)
    prefixes = [p for p in plain if list(p) == wanted[: len(p)] and len(p) < len(wanted)]
    if tuple(wanted) in plain:
        assert found.exact == wanted
        assert trie.get("m", wanted) == plain[tuple(wanted)]
    else:
        assert found.exact is None
        assert found.shorter == (list(max(prefixes, key=len)) if prefixes else None)
        assert found.common_prefix == max((shared(p, wanted) for p in plain), default=0)
        common = found.common_prefix
        beyond = [p for p in plain if common and list(p[:common]) == wanted[:common]]
        assert (found.longer is None) == (not beyond)
        if beyond:
            assert tuple(found.longer) in beyond
            assert len(found.longer) == min(map(len, beyond))


@given(st.lists(paths, max_size=12), st.lists(st.integers(0, 2), max_size=40))
def test_a_long_list_is_found_piece_by_piece(stored, wanted):
    trie = PromptTrie()
    for path in stored:
        trie.add("m", path * 3, path)
    whole, in_array = trie.search("m", wanted), array("I", wanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trie_module, "_HEAD", 1)  # 16 times more, while the list is 8 times that
        found = trie.search("m", wanted)
        assert trie.walk("m", wanted) == trie.walk("m", in_array)
    assert found == whole
    assert found.longer == whole.longer


@pytest.mark.parametrize("at", [0, 1_023, 1_024, 1_025, 16_384, 16_385, 150_000, 199_999])
def test_of_a_long_list_only_the_start_is_looked_at(at):
    trie, long = PromptTrie(), list(range(200_000))
    trie.add("m", long, "long")
    looked_at = 1_024 if at < 1_024 else 16_384 if at < 16_384 else 200_000
    wanted = [*long[:at], 7_000_000, *long[at + 1 :]]
    wanted[looked_at:] = ["no id"] * (200_000 - looked_at)
    assert trie.search("m", wanted).common_prefix == at
    assert trie.walk("m", wanted).length == at


def test_an_exact_path_is_the_callers_own_list():
    trie, wanted = PromptTrie(), [1, 2, 3]
    trie.add("m", (1, 2, 3), "three")
    assert trie.search("m", wanted).exact is wanted
    for other in (tuple(wanted), array("I", wanted), iter(wanted)):
        assert trie.search("m", other).exact == wanted
    assert "2" not in repr(trie.search("m", wanted)).split("object")[0]


@given(st.lists(paths, min_size=1, max_size=12), st.randoms())
def test_pop_takes_each_value_once_and_leaves_nothing(stored, order):
    trie, plain = PromptTrie(), {}
    for number, path in enumerate(stored):
        trie.add("m", path, number)
        plain[tuple(path)] = number
    keys = list(plain)
    order.shuffle(keys)
    for key in keys:
        assert trie.pop("m", list(key)) == plain.pop(key)
        with pytest.raises(KeyError):
            trie.get("m", list(key))
        assert all(trie.get("m", list(other)) == plain[other] for other in plain)
    assert list(trie.nodes()) == []


@given(st.lists(paths, min_size=1, max_size=8), paths)
def test_pop_prefixes_takes_proper_prefixes_only(stored, wanted):
    trie = PromptTrie()
    for path in [*stored, wanted]:
        trie.add("m", path, len(path))
    proper = sorted({len(p) for p in stored if p == wanted[: len(p)] and len(p) < len(wanted)})
    assert trie.pop_prefixes("m", wanted) == [(length, length) for length in proper]
    assert trie.get("m", wanted) == len(wanted)


@given(paths, paths, st.integers(0, 5), st.integers(0, 5))
def test_common_prefix(a, b, a_from, b_from):
    a_from, b_from = min(a_from, len(a)), min(b_from, len(b))
    expected = shared(a[a_from:], b[b_from:])
    assert common_prefix(array("I", a), array("I", b), a_from, b_from) == expected


@pytest.mark.parametrize("at", [0, 1, 15, 16, 17, 79, 80, 5_000, 99_999, 100_000])
def test_common_prefix_of_long_runs(at):
    a = array("I", range(100_000))
    b = a[:at] + array("I", [7] * (100_000 - at))
    assert common_prefix(a, b) == at or (at == 7 and b[7] == a[7])


def test_a_span_splits_and_keeps_its_path():
    trie = PromptTrie()
    node = trie.place("m", array("I", [1, 2, 3, 4]))
    upper = trie.split(node, 2)
    assert (upper.start, upper.end, node.start, node.end) == (0, 2, 2, 4)
    assert upper.path().tolist() == [1, 2]
    assert node.path().tolist() == [1, 2, 3, 4]
    for outside in (0, 2, 4, 9):
        with pytest.raises(ValueError, match=f"at={outside}"):
            trie.split(node, outside)


def test_models_do_not_meet():
    trie = PromptTrie()
    trie.add("a", [1, 2], "a")
    assert trie.search("b", [1, 2]).common_prefix == 0
    assert trie.walk("b", [1, 2]).nodes == []


def test_prune_removes_leaves_only():
    trie = PromptTrie()
    leaf = trie.place("m", array("I", [1, 2, 3]))
    inner = trie.split(leaf, 1)
    with pytest.raises(ValueError, match="not a leaf"):
        trie.prune(inner)
    trie.prune(leaf)
    trie.prune(inner)
    assert list(trie.nodes()) == []


def test_a_path_of_a_million_tokens_and_a_deep_chain_survive_pickling():
    trie = PromptTrie()
    long = array("I", range(1_000_000))
    trie.add("m", long, "end")
    for end in range(1, 1_500):  # a chain deeper than any recursion limit
        trie.add("m", long[:end], end)
    for copied in (pickle.loads(pickle.dumps(trie)), copy.deepcopy(trie)):
        assert copied.get("m", long) == "end"
        assert copied.get("m", long[:1_234]) == 1_234
        assert sum(len(node.tokens) for node in copied.nodes()) == 1_000_000


def test_the_index_takes_four_bytes_a_token():
    trie = PromptTrie()
    node = trie.place("m", array("I", random.Random(0).choices(range(50_000), k=100_000)))
    assert node.tokens.itemsize == 4
    assert len(node.tokens) == 100_000


@pytest.mark.parametrize("bad", [["a"], [1.5], [-1], [2**32], [None]])
def test_tokens_that_are_no_ids_are_refused_by_name(bad):
    with pytest.raises(ValueError, match="tokens must be integers"):
        as_tokens(bad)


def test_repr_shows_no_tokens():
    node = PromptTrie().place("m", array("I", [31337, 4242]))
    assert "31337" not in repr(node)
