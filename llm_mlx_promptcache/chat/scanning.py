"""Small scanners over text that is still coming: marks, JSON strings, the end of a JSON value."""

from __future__ import annotations

from collections.abc import Sequence


class Marks:
    """Finds the first of several marks in text that may end inside one."""

    def __init__(self, marks: Sequence[str]) -> None:
        self._marks = [mark for mark in marks if mark]

    def split(self, text: str) -> tuple[str, str | None, str]:
        """Text before the first mark, the mark, and the rest; or None, and the text that waits."""
        matches = [(at, -len(mark), mark) for mark in self._marks if (at := text.find(mark)) >= 0]
        if matches:
            at, _, mark = min(matches)
            return text[:at], mark, text[at + len(mark) :]
        kept = self.overlap(text)
        return text[: len(text) - kept], None, text[len(text) - kept :]

    def overlap(self, text: str) -> int:
        """The number of last characters of `text` that may be the beginning of a mark."""
        longest = max((len(mark) for mark in self._marks), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(mark.startswith(text[-size:]) for mark in self._marks):
                return size
        return 0
