"""The store as a tree: paths, and the place where a prompt parts from the nearest of them."""

import random
from array import array

from llm_mlx_promptcache.cache.disk.listing import ListedSpan, Listing, stored_length


def span(file_id, parent, start, tokens, namespace="n"):
    file_id = file_id * 32
    ids = array("I", tokens)
    parent = parent * 32
    return ListedSpan(
        file_id, parent, namespace, "m", start, ids, "user", 100, 0, 0, False, resumes=True
    )


# a: 1 2 3 4 5 6; b leaves it at 2 with 9 9; c goes on behind it; d hangs on b; e starts elsewhere.
SPANS = [
    span("a", "", 0, [1, 2, 3, 4, 5, 6]),
    span("b", "a", 2, [9, 9]),
    span("c", "a", 6, [7, 8]),
    span("d", "b", 4, [5]),
    span("e", "", 0, [4, 4]),
    span("f", "", 0, [1, 2, 3, 4, 5, 6, 7, 8, 9], namespace="other"),
]
LISTING = Listing(SPANS)


def nearest(*ids):
    found = LISTING.nearest("n", array("I", ids))
    return None if found is None else (found.at, found.span.file_id[0], list(found.tokens))


def test_paths():
    paths = {s.file_id[0]: list(LISTING.path(s)) for s in SPANS}
    assert paths["b"] == [1, 2, 9, 9]
    assert paths["c"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert paths["d"] == [1, 2, 9, 9, 5]


def test_along_and_how_far():
    ids = array("I", [1, 2, 9, 9, 6, 6])
    chain = LISTING.along("n", ids)
    assert [s.file_id[0] for s in chain] == ["a", "b"]
    assert stored_length(chain, ids) == 4
    assert stored_length([], ids) == 0


def test_nearest():
    assert nearest(1, 2, 3, 7) == (3, "a", [4, 5, 6])
    assert nearest(1, 2, 9, 9, 5, 1) == (2, "a", [3, 4, 5, 6])
    # What hangs on a span behind the place where the prompt left it is no nearer.
    assert nearest(1, 2, 3, 4, 9) == (4, "a", [5, 6])
    assert nearest(1, 2, 9, 9, 6) == (4, "d", [5])
    assert nearest(7, 7) in [(0, "a", [1, 2, 3, 4, 5, 6]), (0, "e", [4, 4])]
    # Its own path is not another one, and one that only goes on leaves it nowhere.
    assert Listing(SPANS[:1]).nearest("n", array("I", [1, 2, 3])) is None
    assert LISTING.nearest("nobody", array("I", [1])) is None


def test_ids_name_spans_from_eight_characters_on():
    assert [s.file_id[0] for s in LISTING.named("a" * 8)] == ["a"]
    assert LISTING.named("a" * 7) == []
    assert LISTING.named("") == []


def test_nearest_is_what_comparing_all_paths_finds():
    chance = random.Random(7)
    for _ in range(300):
        listing = Listing(grown(chance, []))
        for _ in range(4):
            ids = array("I", [chance.randrange(3) for _ in range(chance.randrange(1, 12))])
            found = listing.nearest("n", ids)
            paths = [listing.path(s) for s in listing.spans]
            shared = [same for p in paths if (same := common(p, ids)) < min(len(p), len(ids))]
            assert (found.at if found else None) == (max(shared) if shared else None)


def common(a, b):
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def grown(chance, spans):
    """Random paths stored one after the other, as a store would: only what is new of each."""
    for number in range(chance.randrange(1, 7)):
        ids = array("I", [chance.randrange(3) for _ in range(chance.randrange(1, 12))])
        chain = Listing(spans).along("n", ids)
        held = stored_length(chain, ids)
        if held < len(ids):
            parent = chain[-1].file_id[0] if chain else ""
            spans = [*spans, span("abcdefg"[number], parent, held, ids[held:])]
    return spans
