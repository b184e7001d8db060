"""Traces: they show which prompts begin alike, and nothing else."""

import io
import json
import random
from array import array

import pytest

from llm_mlx_promptcache.cache import traces
from llm_mlx_promptcache.cache.traces import BlockHashes, TracedRequest, block_size, read_trace


def read(*lines):
    plain = (line if isinstance(line, str | bytes) else json.dumps(line) for line in lines)
    data = [line if isinstance(line, bytes) else line.encode() for line in plain]
    return read_trace(io.BytesIO(b"".join(line + b"\n" for line in data)), "trace")


def tokens(*ids):
    return array("I", ids)


def test_ids_are_equal_as_far_as_prompts_are():
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    hashes = BlockHashes(4)
    prompts = [[chance.randrange(2) for _ in range(chance.randrange(1, 30))] for _ in range(60)]
    ids = [hashes.of("model", tokens(*prompt)) for prompt in prompts]
    for prompt, found in zip(prompts, ids, strict=True):
        assert len(found) == -(-len(prompt) // 4)
        for other, others in zip(prompts, ids, strict=True):
            for at in range(min(len(found), len(others))):
                alike = prompt[: 4 * at + 4] == other[: 4 * at + 4]
                assert (found[at] == others[at]) == alike


def test_the_same_prompt_has_other_ids_under_another_salt_or_model():
    prompt = tokens(*range(100))
    hashes = BlockHashes(4)
    first = set(hashes.of("model", prompt))
    assert len(first) == 25
    assert first == set(hashes.of("model", prompt))
    assert first.isdisjoint(hashes.of("another", prompt))
    assert first.isdisjoint(BlockHashes(4).of("model", prompt))
    assert all(0 <= id < 1 << 53 for id in first)


def test_a_block_has_the_tier_of_its_first_token():
    hashes = BlockHashes(4)
    boundaries = [(6, "system"), (13, "user"), (14, "assistant")]
    assert hashes.tiers(boundaries, 22) == [
        *("system", "system", "user", "user"),
        *("assistant", "assistant"),
    ]
    assert hashes.tiers([(6, "system"), (40, "user")], 9) == ["system", "system", "user"]
    assert hashes.tiers([], 5) == ["user", "user"]
    for length in range(30):
        assert len(hashes.tiers(boundaries, length)) == len(hashes.of("", tokens(*range(length))))


def test_a_trace_is_read_as_it_was_written():
    ours = TracedRequest(3, 70, 5, array("Q", [1, 2, 1 << 52]), ("system", "user", "assistant"))
    plain = TracedRequest(9, 40, 1, array("Q", [1, 4]))
    assert json.loads(ours.line())["tiers"] == "sua"
    assert set(json.loads(plain.line())) == {
        *("timestamp", "input_length", "output_length", "hash_ids"),
    }
    assert read(ours.line(), "", plain.line()) == [ours, plain]
    assert ours.path == (array("Q", [1, 2, 1 << 52]), ("system", "user", "assistant"))
    assert plain.path == (array("Q", [1, 4]), ["assistant", "assistant"])


def test_public_traces_with_less_in_them_are_read():
    (found,) = read({"timestamp": 7.0, "hash_ids": [3], "type": "chat"})
    assert found == TracedRequest(7, 0, 0, array("Q", [3]))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "it is no JSON object"),
        ("[" * 100_000, "it is no JSON object (too deep)"),
        (b"\x1f\x8b\x08\0", "it is no JSON object (not UTF-8)"),
        ('{"hash_ids": [1], "timestamp": ' + "9" * 5000 + "}", "has too many digits"),
        ([1], "it is no JSON object"),
        ({}, "hash_ids is no list"),
        ({"hash_ids": 3}, "hash_ids is no list"),
        ({"hash_ids": ["a"]}, "hash_ids is no list"),
        ({"hash_ids": [-1]}, "hash_ids is no list"),
        ({"hash_ids": [True]}, "hash_ids is no list"),
        ({"hash_ids": [1 << 63]}, "hash_ids is no list"),
        ({"hash_ids": [1], "timestamp": -1}, "timestamp is no whole number"),
        ({"hash_ids": [1], "input_length": 1.5}, "input_length is no whole number"),
        ({"hash_ids": [1], "output_length": "a"}, "output_length is no whole number"),
        ({"hash_ids": [1], "tiers": "su"}, "tiers is no text"),
        ({"hash_ids": [1], "tiers": "x"}, "tiers is no text"),
        ({"hash_ids": [1], "tiers": ["s"]}, "tiers is no text"),
        ({"hash_ids": [1, 1]}, "block 1 stands behind two others"),
        ({"hash_ids": [2, 1]}, "block 1 stands behind two others"),
        ('{"hash_ids": [1], "timestamp": Infinity}', "Infinity is no number there"),
    ],
)
def test_what_is_wrong_is_told_by_line_and_name(line, words):
    with pytest.raises(ValueError, match=r"^trace, line 2: ") as caught:
        read({"hash_ids": [1]}, line)
    assert words in str(caught.value)


def test_a_trace_is_bounded(monkeypatch):
    with pytest.raises(ValueError, match="holds no request"):
        read({"hash_ids": []})
    monkeypatch.setattr(traces, "MOST_BLOCKS", 3)
    assert len(read(*[{"hash_ids": [1]}] * 3)) == 3
    with pytest.raises(ValueError, match="more than 3 blocks"):
        read(*[{"hash_ids": [1]}] * 4)
    monkeypatch.setattr(traces, "MOST_LINE", 40)
    with pytest.raises(ValueError, match="line 1: a line may have"):
        read({"hash_ids": [1] * 40})
    monkeypatch.setattr(traces, "MOST_BYTES", 40)
    with pytest.raises(ValueError, match="line 3: a line may have"):
        read(*[{"hash_ids": [1]}] * 3)


def test_the_size_of_blocks_is_what_lengths_say():
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(50):
        size = chance.randrange(1, 70)
        lengths = [chance.randrange(1, 400) for _ in range(chance.randrange(1, 12))]
        requests = [TracedRequest(0, n, 0, range(-(-n // size))) for n in lengths]
        fits = [one for one in range(1, 500) if all(-(-n // one) == -(-n // size) for n in lengths)]
        found = block_size(requests)
        if max(lengths) <= size:
            assert found is None  # one block each: it may have any size
            continue
        powers = [one for one in fits if one & (one - 1) == 0]
        assert found == (powers or fits)[0]


def test_lengths_that_tell_nothing_or_disagree_are_none():
    assert block_size([TracedRequest(0, 0, 0, [1, 2])]) is None
    assert block_size([TracedRequest(0, 32, 0, [1, 2]), TracedRequest(0, 16, 0, [1])]) == 16
    disagree = [TracedRequest(0, 32, 0, [1, 2]), TracedRequest(0, 5, 0, [1, 2])]
    assert block_size(disagree) is None
