"""Checkup: all faults in a store's folder, a line each, mended on request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .budget import Below
from .damage import DamagedIndex
from .folder import StoreFolder
from .index import Index
from .inspection import Finding, Kind, inspect
from .pins import Pins
from .shared_index import SharedIndex
from .upkeep import Upkeep
from .witness import Witness

_MOST_FIXES: Final = 4  # one may reveal work for the next


class Checkup:
    """Runs `check` on a folder that exists."""

    def __init__(
        self,
        folder: StoreFolder,
        index: SharedIndex,
        pins: Pins,
        witness: Witness,
        upkeep: Upkeep,
    ) -> None:
        self._folder = folder
        self._index = index
        self._pins = pins
        self._witness = witness
        self._upkeep = upkeep

    def lines(self, *, fix: bool, contents: bool) -> list[str]:
        """The faults, a line each; with `fix` they are mended, and damaged files removed.

        Files are read and verified with `contents`.
        """
        self._upkeep.write_notes()
        mended = len(self._index.mended)
        found = left = self._findings(contents=contents)
        if self._index.off:
            return [f"the folder {self._folder.path} can't be used"]
        for _ in range(_MOST_FIXES if fix else 0):
            if not left:
                break
            self._fix(left)
            # A file that was taken in again by its head may hold damaged content.
            before, left = left, self._findings(contents=contents)
            if left == before:
                break
        # Faults that could not even be looked at are mended by now.
        return [*self._index.mended[mended:], *(finding.said for finding in found)]

    def _findings(self, *, contents: bool) -> list[Finding]:
        def look(index: Index) -> list[Finding]:
            found = inspect(index, self._folder, self._pins, self._witness, contents=contents)
            return list(found)

        nothing: list[Finding] = []
        return self._index.run(look, nothing, asked=True)

    def _fix(self, found: Sequence[Finding]) -> None:
        """Mend the findings: only seen damage is removed, unreadable files stay."""
        wrong = [finding for finding in found if finding.kind is Kind.INDEX]
        if wrong:
            self._index.put_aside(DamagedIndex(wrong[0].said))
        for finding in found:
            if finding.kind is Kind.SPAN:
                self._upkeep.remove(Below(finding.file_id, self._witness), asked=True)
            elif finding.kind is Kind.ENDS:
                self._upkeep.remove_ends(finding.file_id, asked=True)
        self._upkeep.sweep(every=True)
        if any(finding.kind is Kind.PINS for finding in found):
            self._index.run(self._pins.keep, None)
