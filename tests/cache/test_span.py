"""A path's digest tells it from every other path."""

from array import array

import pytest

from llm_mlx_promptcache.cache.span import path_digest

TOKEN = int.from_bytes(b"abcd", "little")


@pytest.mark.parametrize(
    ("path", "other"),
    [
        (("m", [TOKEN]), ("mabcd", [])),
        (("m", [TOKEN, 7]), ("mabcd", [7])),
        (("\0", []), ("", [0])),
        (("1", [7]), (1, [7])),
        (("m", [7]), ("m", [7, 0])),
        (("m\ud800", [7]), ("m\ud801", [7])),
    ],
)
def test_no_two_paths_have_one_digest(path, other):
    first, second = (path_digest(namespace, array("I", ids)) for namespace, ids in (path, other))
    assert first != second
    assert first == path_digest(path[0], array("I", path[1]))
