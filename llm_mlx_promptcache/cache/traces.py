"""Traces of a cache's use, in the form of Mooncake's public ones: JSON lines without any text.

A line is a request: `timestamp` (ms from the first), `input_length` and `output_length` (tokens),
and `hash_ids`, one for each block of the prompt, the last of which may be shorter. Equal ids mean
prompts that are equal up to and with that block (R. Qin et al., Mooncake, FAST '25). Ours have
`tiers` beside them, which readers of the public ones pass over: a letter for each block.
"""

from __future__ import annotations

import json
import secrets
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import IO, Any, Final, NamedTuple, NoReturn

from .json_lines import json_object
from .memory.simulation import TracedPath

BLOCK: Final = 16  # tokens; short prompts are most of what people ask
MOST_LINE: Final = 16 << 20  # bytes
MOST_BYTES: Final = 2 << 30  # of a whole trace
MOST_BLOCKS: Final = 20_000_000  # of a whole trace, which is held in memory
_MOST_NUMBER: Final = 1 << 63
_ID_BITS: Final = 53  # every reader of JSON holds so large a number exactly
_TIERS: Final = {"s": "system", "u": "user", "a": "assistant"}
_LETTERS: Final = {tier: letter for letter, tier in _TIERS.items()}


class TracedRequest(NamedTuple):
    """A prompt of a trace: its time (ms), its tokens and its answer's, its blocks.

    `tiers` has a tier for each block, or nothing if they are unknown.
    """

    timestamp: int
    input_length: int
    output_length: int
    hash_ids: Sequence[int]
    tiers: Sequence[str] = ()

    @property
    def path(self) -> TracedPath:
        """Its blocks, and the tier that each would have in a cache."""
        return TracedPath(self.hash_ids, self.tiers or ["assistant"] * len(self.hash_ids))

    def line(self) -> str:
        """The request as a line of a trace."""
        found: dict[str, Any] = {**self._asdict(), "hash_ids": list(self.hash_ids)}
        if self.tiers:
            found["tiers"] = "".join(_LETTERS[tier] for tier in self.tiers)
        else:
            del found["tiers"]
        return json.dumps(found)


class BlockHashes:
    """Ids for the blocks of prompts, keyed with a salt that nobody else has and nothing keeps.

    Within one object equal beginnings have equal ids; otherwise they are noise. Different objects
    have no ids in common, so traces can be put together.
    """

    def __init__(self, block: int = BLOCK) -> None:
        self._block = block
        self._salt = secrets.token_bytes(32)

    def of(self, namespace: str, tokens: array[int]) -> list[int]:
        """The ids of a prompt's blocks; those of two namespaces are never equal."""
        start = blake2b(namespace.encode(), key=self._salt, digest_size=32).digest()
        path = blake2b(start, key=self._salt, digest_size=8)
        found = []
        for at in range(0, len(tokens), self._block):
            path.update(tokens[at : at + self._block].tobytes())
            found.append(int.from_bytes(path.digest(), "big") >> (64 - _ID_BITS))
        return found

    def tiers(self, boundaries: Iterable[tuple[int, str]], length: int) -> list[str]:
        """The tier of each block: of its first token, by the boundary that ends it.

        Text behind the last boundary is of the tier before it.
        """
        found: list[str] = []
        tier = "user"
        for position, tier in boundaries:
            while len(found) * self._block < min(position, length):
                found.append(tier)
        return found + [tier] * (-(-length // self._block) - len(found))


def read_trace(file: IO[bytes], name: str) -> list[TracedRequest]:
    """The requests of a trace as its lines stand; ValueError names the line and what is wrong."""
    found: list[TracedRequest] = []
    number = blocks = size = 0
    behind: dict[int, int | None] = {}
    while data := file.readline(MOST_LINE + 1):
        number, size = number + 1, size + len(data)
        if len(data) > MOST_LINE or size > MOST_BYTES:
            raise ValueError(
                f"{name}, line {number}: a line may have {MOST_LINE >> 20} MB, and a trace"
                f" {MOST_BYTES >> 30} GB"
            )
        if not data.strip():
            continue
        try:
            found.append(_request(data))
            _check_chain(found[-1].hash_ids, behind)
        except ValueError as error:
            raise ValueError(f"{name}, line {number}: {error}") from None
        blocks += len(found[-1].hash_ids)
        if blocks > MOST_BLOCKS:
            raise ValueError(f"{name} has more than {MOST_BLOCKS:,} blocks; cut it")
    if not blocks:
        raise ValueError(f"{name} holds no request with blocks")
    return found


def block_size(requests: Iterable[TracedRequest]) -> int | None:
    """Tokens of a block, from lengths and blocks; None if they tell nothing, or disagree.

    `n` blocks hold `length` tokens if a block has length / n or more, and fewer than length / (n -
    1). Of the sizes that fit all requests it is the power of two, or else the least.
    """
    least, most = 1, _MOST_NUMBER
    for request in requests:
        count, length = len(request.hash_ids), request.input_length
        if count and length:
            least = max(least, -(-length // count))
            most = min(most, -(-length // (count - 1)) - 1 if count > 1 else most)
    if least > most or most == _MOST_NUMBER:
        return None
    power = 1 << (least - 1).bit_length()
    return power if power <= most else least


def _check_chain(ids: Sequence[int], behind: dict[int, int | None]) -> None:
    """Refuse ids that are no prefix's: equal ones must have equal ids before them."""
    for before, id in pairwise((None, *ids)):
        if id is not None and behind.setdefault(id, before) != before:
            _refuse(f"block {id} stands behind two others; an id tells all tokens up to its end")


def _request(data: bytes) -> TracedRequest:
    found = json_object(data)
    ids = found.get("hash_ids")
    if not isinstance(ids, list) or not all(_is_number(id) for id in ids):
        _refuse("hash_ids is no list of whole numbers")
    return TracedRequest(
        _number(found, "timestamp"),
        _number(found, "input_length"),
        _number(found, "output_length"),
        array("Q", ids),
        tuple(_read_tiers(found.get("tiers"), len(ids))),
    )


def _number(found: Mapping[str, Any], name: str) -> int:
    """A whole number; 0 if there is none: some public traces have no lengths."""
    value = found.get(name, 0)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not _is_number(value):
        _refuse(f"{name} is no whole number of 0 or more")
    return int(value)


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value < _MOST_NUMBER


def _read_tiers(letters: object, count: int) -> Iterator[str]:
    if letters is None:
        return
    if not isinstance(letters, str) or len(letters) != count or not set(letters) <= set(_TIERS):
        _refuse("tiers is no text with a letter of s, u and a for each of hash_ids")
    yield from (_TIERS[letter] for letter in letters)


def _refuse(what: str) -> NoReturn:
    raise ValueError(what)
