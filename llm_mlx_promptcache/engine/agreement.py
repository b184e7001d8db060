"""Agreed: the prefix of a prompt that all ranks of a group can go on from.

Each rank has a cache of its own: another has evicted more, or found a file damaged. So all tell
where they could resume, and look again no further than the least of it, until they say the same.
It only ever shrinks. What a rank then can't read after all, it says in the same way.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..cache.lookup import Reach
    from ..cache.memory.leases import Lease
    from .ranks import Ranks


class Fetching(Protocol):
    """One prompt in one rank's cache."""

    def reach(self, most: int) -> Reach:
        """The place where it could resume, no further than `most`."""

    def take(self, most: int) -> Lease:
        """The layers for as much of it, no more than `most`."""

    def put_back(self, lease: Lease) -> None:
        """A lease that is too long: as if it had never been taken."""


def lease_alike(ranks: Ranks, ids: array[int], fetching: Fetching) -> Lease:
    """A lease that covers as many tokens on every rank; all call this with the same prompt.

    It is `matched` as far as on the rank that knows most of it. GroupEnded where prompts differ.
    """
    most = len(ids) - 1
    resume_at, matched = fetching.reach(most)
    prompt = _digest(ids)
    while True:
        least, highest = ranks.agree(resume_at, matched, prompt)
        if least[2] != highest[2]:
            raise ranks.fail("the ranks were given different prompts")
        matched = highest[1]
        if least[0] == highest[0]:
            break
        resume_at = fetching.reach(least[0]).resume_at
    lease = fetching.take(resume_at)
    while True:
        least, highest = ranks.agree(lease.cached)
        if least == highest:
            return lease._replace(matched=max(matched, lease.matched))
        if lease.cached > least[0]:
            fetching.put_back(lease)
            lease = fetching.take(least[0])


def _digest(ids: array[int]) -> int:
    """A number that JSON keeps, and that differs where a prompt does."""
    return int.from_bytes(blake2b(ids.tobytes(), digest_size=6).digest(), "big")
