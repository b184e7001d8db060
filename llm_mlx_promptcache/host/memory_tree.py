"""Memory beside the disk: how much of each stored span it has, and the spans it has alone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from ..cache.disk.listing import ID_LENGTH, path_id, stored_length
from .shown_span import FIRST_TOKENS, ShownSpan

if TYPE_CHECKING:
    from ..cache.disk.listing import ListedSpan, Listing
    from ..cache.memory.listing import MemoryPath, MemorySpan
    from ..cache.prompt_cache import PromptCache
    from ..cache.trie import Tokens


class NamedSpan(NamedTuple):
    """A span that an id means: its whole id, and the path to its end."""

    id: str
    namespace: str
    path: Tokens[int]


class MemoryTree:
    """The paths in a cache's memory, compared with a listing of its disk."""

    def __init__(self, cache: PromptCache, listing: Listing) -> None:
        self.held: dict[str, int] = {}  # tokens of a stored span that are in memory, by its id
        self._alone: dict[str, ShownSpan] = {}
        self._paths: dict[str, Tokens[int]] = {}  # that go through those
        names = {name: one.model for one in cache.models() for name in one.namespaces}
        self._now = time.time()
        for path in cache.paths():
            chain = listing.along(path.namespace, path.tokens)
            stored = stored_length(chain, path.tokens)
            self._note_held(chain, stored)
            self._note_alone(path, chain, stored, names.get(path.namespace, ""))

    @property
    def alone(self) -> list[ShownSpan]:
        """The spans that only memory has, parents before their children."""
        return list(self._alone.values())

    def named(self, name: str) -> list[NamedSpan]:
        """The spans that only memory has and that an id or its beginning can mean."""
        if len(name) < ID_LENGTH:
            return []
        meant = [one for one in self.alone if one.id.startswith(name)]
        return [NamedSpan(one.id, one.namespace, self._paths[one.id][: one.end]) for one in meant]

    def _note_held(self, chain: list[ListedSpan], stored: int) -> None:
        for span in chain:
            tokens = min(span.end, stored) - span.start
            self.held[span.file_id] = max(tokens, self.held.get(span.file_id, 0))

    def _note_alone(
        self, path: MemoryPath, chain: list[ListedSpan], stored: int, model: str
    ) -> None:
        parent = chain[-1].file_id if chain else ""
        for span in path.spans:
            if span.end <= stored:
                continue
            found = self._only(path, span, max(span.start, stored), parent, model)
            self._alone.setdefault(found.id, found)
            self._paths.setdefault(found.id, path.tokens)
            parent = found.id

    def _only(
        self, path: MemoryPath, span: MemorySpan, start: int, parent: str, model: str
    ) -> ShownSpan:
        part = (span.end - start) / (span.end - span.start)
        return ShownSpan(
            id=path_id(path.namespace, path.tokens[: span.end]),
            parent=parent,
            namespace=path.namespace,
            model=model,
            tier=span.tier,
            start=start,
            end=span.end,
            bytes=int(span.bytes * part),
            hits=span.uses,
            used_at=int(self._now - span.idle),
            pinned=span.pinned,
            resumes=True,
            first_tokens=path.tokens[start : min(start + FIRST_TOKENS, span.end)].tolist(),
            in_memory=span.end - start,
            on_disk=False,
        )
