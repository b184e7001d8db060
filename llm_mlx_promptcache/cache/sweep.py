"""Keeping files and index to each other: what is rebuilt, what is swept, and what is reported."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from .files import Files
from .index import Index, Row
from .layers import layout_to_json
from .span_file import SUFFIX, TEMPORARY, DamagedSpan, Head, OpenSpan, read_span

STALE_SECONDS: Final = 3600.0  # a file without a row may be another process's, about to get one


def rank_of(tiers: Sequence[str], tier: str) -> int:
    """A tier's place; one that is not ours is taken for the least persistent."""
    return tiers.index(tier) if tier in tiers else 0


def stems_in(names: Iterable[str]) -> set[str]:
    """The stems of what looks like a span's file of ours."""
    stems = {name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)}
    return {s for s in stems if len(s) == 32 and set(s) <= set("0123456789abcdef")}


def is_temporary(name: str) -> bool:
    """Whether a name is one of a span that was never finished."""
    parts = name.removeprefix(TEMPORARY).split("-")
    return name.startswith(TEMPORARY) and len(parts) == 2 and parts[0].isdigit()


def rebuild(index: Index, folder: Path, files: Files, tiers: Sequence[str]) -> int:
    """Fill an empty index from the heads of the files; returns how many it took in.

    Contents are verified when they are read, as always. Inside a transaction of the caller's.
    """
    waiting: dict[str, list[tuple[Row, str]]] = {}
    for stem in sorted(stems_in(files.names(folder))):
        with suppress(OSError, DamagedSpan):
            row, layout = _row(folder, stem, files, tiers)
            waiting.setdefault(row.parent, []).append((row, layout))
    parents = [""]
    taken: dict[str, Row] = {}
    while parents:
        for row, layout in waiting.pop(parents.pop(), []):
            if _hangs(row, taken.get(row.parent)) and index.add(row, layout):
                taken[row.stem] = row
                parents.append(row.stem)
    return len(taken)


def sweep(index: Index, folder: Path, files: Files, every: bool = False) -> int:
    """Drop rows without a file, files without a row and unfinished files; returns how many.

    Files are left to age first, unless `every` says that no other process is at work.
    """
    names = files.names(folder)
    rows = {stem for stem, _ in index.rows()}
    stems = stems_in(names)
    gone = [s for s in rows - stems if not (folder / (s + SUFFIX)).exists()]
    swept = 0
    for stem in gone:
        with index.transaction():
            swept += len(below := index.drop(stem))
        for one in below:
            files.unlink(folder / (one + SUFFIX))
    for name in [stem + SUFFIX for stem in stems - rows] + [n for n in names if is_temporary(n)]:
        if every or _is_stale(folder / name, files):
            swept += files.unlink(folder / name)
    return swept


def check(index: Index, folder: Path, files: Files) -> Iterator[str]:
    """What is wrong, a line each: with the index, with the files, and between them (law 3)."""
    yield from index.check()
    rows = {stem for stem, _ in index.rows()}
    stems = stems_in(files.names(folder))
    yield from (f"span {stem} has a row and no file" for stem in sorted(rows - stems))
    yield from (f"span {stem} has a file and no row" for stem in sorted(stems - rows))
    for stem in sorted(stems & rows):
        try:
            read_span(folder / (stem + SUFFIX), files)
        except FileNotFoundError:
            continue  # evicted meanwhile by another process
        except (OSError, DamagedSpan) as error:
            yield f"span {stem} can't be read: {error}"


def unreadable(index: Index, folder: Path, files: Files) -> Iterator[str]:
    """The stems of spans that are not what was written."""
    for stem, _ in index.rows():
        try:
            read_span(folder / (stem + SUFFIX), files)
        except (OSError, DamagedSpan):
            yield stem


def _row(folder: Path, stem: str, files: Files, tiers: Sequence[str]) -> tuple[Row, str]:
    span = OpenSpan(folder / (stem + SUFFIX), files)
    span.close()
    row = row_of(stem, span.size, span.head, files, tiers)
    return row, json.dumps(layout_to_json(span.head.layout))


def row_of(stem: str, size: int, head: Head, files: Files, tiers: Sequence[str]) -> Row:
    """The index's row of a file with this head, used just now."""
    return Row(
        stem=stem,
        namespace=head.namespace,
        parent=head.parent,
        start=head.start,
        tokens=head.tokens,
        resumes=head.resumes,
        tier=rank_of(tiers, head.tier),
        bytes=size,
        used_at=int(files.now()),
    )


def _hangs(row: Row, parent: Row | None) -> bool:
    """Whether a span can hang where its file says: on its parent's tokens, or at the start."""
    if parent is None:
        return row.parent == "" and row.start == 0
    within = parent.start < row.start <= parent.start + len(parent.tokens)
    return within and row.namespace == parent.namespace


def _is_stale(path: Path, files: Files) -> bool:
    """Whether nobody can be writing a file any more; the clock may have jumped either way."""
    parts = path.name.removeprefix(TEMPORARY).split("-")
    if is_temporary(path.name) and not _is_alive(int(parts[0])):
        return True
    with suppress(OSError):
        return abs(files.now() - path.lstat().st_mtime) > STALE_SECONDS
    return False


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
