"""Tokens that stood behind a path before, from the index: answers are drafted from them.

Rows have the tokens, so no span's file is opened. Guesses need no proof: no rows are taken from
here, and a wrong one only costs what the model had to compute anyway.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

from .index_rows import SELECT_ROWS, row_from

if TYPE_CHECKING:
    from ..trie import Tokens
    from .index import Index
    from .index_rows import SpanRow

_MOST_ON_PATH: Final = 64  # rows that are read up to the path's end
_MOST_BEHIND: Final = 8  # and behind it
# The last stored of the first so many spans that hang on a span behind a token.
_NEWEST: Final = """
SELECT max(rowid) FROM (
    SELECT rowid, first FROM spans INDEXED BY by_parent WHERE parent = ? AND start >= ? LIMIT 256
) WHERE first != -1
"""
# A blob's length is known without reading it.
_ROW: Final = SELECT_ROWS + " WHERE rowid = ? AND length(tokens) <= ?"


def said_behind(index: Index, namespace: str, tokens: Tokens[int], most: int) -> Tokens[int]:
    """At most `most` tokens behind a path, as it went on when it was last stored."""
    found = array("I")
    row, at = _end_of(index, namespace, tokens), len(tokens)
    for _ in range(_MOST_BEHIND):
        if row is None or len(found) >= most:
            break
        child = _newest(index, row, at, most)
        end = len(row.tokens) if child is None else child.start - row.start
        found += row.tokens[at - row.start : end][:most]
        row, at = child, at if child is None else child.start
    return found[:most]


def _end_of(index: Index, namespace: str, tokens: Tokens[int]) -> SpanRow | None:
    """The row in which a path ends, if all of it is stored in not too many rows."""
    row: SpanRow | None = None
    end = 0
    for _ in range(_MOST_ON_PATH):
        step = index.step(namespace, "" if row is None else row.file_id, end, tokens)
        if step is None:
            return None
        row, same = step
        end += same
        if end == len(tokens):
            return row
    return None


def _newest(index: Index, row: SpanRow, at: int, most: int) -> SpanRow | None:
    """The span stored last of all that hang on a span at its token `at` or behind it."""
    newest = index.db.execute(_NEWEST, (row.file_id, at)).fetchone()
    values = index.db.execute(_ROW, (*newest, 4 * most)).fetchone()
    if values is None:
        return None
    child = row_from(values)
    # Other namespaces' spans are not shown, whatever a damaged index says.
    mine = (child.namespace, child.parent) == (row.namespace, row.file_id)
    return child if mine and at <= child.start <= row.end else None
