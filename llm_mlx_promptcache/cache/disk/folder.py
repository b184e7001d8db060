"""A store's folder: its paths, and the calls by which this process asks for its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .file_ids import pack_path, span_path
from .files import Files

_INDEX: Final = "index.sqlite"
_SET_ASIDE: Final = "index.damaged"
_SPANS: Final = "spans"


@dataclass(frozen=True)
class StoreFolder:
    """The folder at `path`, asked through `files`; `tiers` are this process's own."""

    path: Path
    files: Files
    tiers: tuple[str, ...]

    @property
    def spans(self) -> Path:
        """The folder of the spans' files."""
        return self.path / _SPANS

    @property
    def index(self) -> Path:
        """The index beside them."""
        return self.path / _INDEX

    @property
    def set_aside(self) -> Path:
        """The path to which a damaged index is moved."""
        return self.path / _SET_ASIDE

    def span(self, file_id: str) -> Path:
        """The path of a span's file; DamagedIndex if the id could lead anywhere else."""
        return span_path(self.spans, file_id)

    def pack(self, pack: str) -> Path:
        """The path of a pack's file; DamagedIndex as for a span's."""
        return pack_path(self.spans, pack)

    def place(self, file_id: str, pack: str) -> Path:
        """The path of the file that holds a span: its own, or that of its pack."""
        return self.pack(pack) if pack else self.span(file_id)

    def names(self) -> list[str]:
        """The names in the folder of spans."""
        return self.files.names(self.spans)

    def rank_of(self, tier: str) -> int:
        """A tier's rank; an unknown one counts as the least persistent."""
        return self.tiers.index(tier) if tier in self.tiers else 0
