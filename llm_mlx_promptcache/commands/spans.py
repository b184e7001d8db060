"""Commands about stored spans: their tree, and pins, which protect them from eviction."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

import click

from ..engine.pool import disk_store
from ..host.served import served_names
from ..host.shown_span import ShownSpan
from .host import seen_by_host
from .shown import TreeLine, counted, json_option, quoted, show_json, show_tree, stored_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ..cache.disk.listing import Listing
    from ..models.tokenizer_alone import FirstWords


@click.command()
@click.option("--model", help="Only of this model, as stats shows it, or by name.")
@click.option("--text", is_flag=True, help="Show each span's first words (your conversations).")
@json_option
def tree(*, model: str | None, text: bool, as_json: bool) -> None:
    """Show the spans on disk, and in the host's memory, as a tree.

    Each line is a span: its id, the tokens of the path that it holds, its tier, size, and uses, and
    whether it is in memory. A line that begins with "+" continues the one above it.
    """
    told = seen_by_host({"ask": "tree", "text": text})
    rows = _shown(disk_store().listing(), told)
    roots = _roots(rows, model)
    words = _Words(wanted=text, told=told)
    if as_json:
        show_json([_plain(row, words) for row in rows if row.namespace in roots])
        return
    for namespace, name in roots.items():
        there = [row for row in rows if row.namespace == namespace]
        show_tree(f"{name or 'unnamed'} ({namespace[:8]})", _lines(there, words))
    if not roots:
        click.echo("nothing is stored")


@click.command()
@click.argument("span", metavar="ID")
@json_option
def pin(*, span: str, as_json: bool) -> None:
    """Protect the path to a span from eviction; ID is the id in tree."""
    _set_pinned(span, pinned=True, as_json=as_json)


@click.command()
@click.argument("span", metavar="ID")
@json_option
def unpin(*, span: str, as_json: bool) -> None:
    """Let a pinned span be evicted again; ID is the id in tree."""
    _set_pinned(span, pinned=False, as_json=as_json)


def _set_pinned(name: str, *, pinned: bool, as_json: bool) -> None:
    store = disk_store()
    ask = {"ask": "pin", "id": name, "pinned": pinned}
    told = _told_by_served(ask)
    if told is None:
        told = seen_by_host(ask, "nothing of its memory is pinned or unpinned")
    listing = store.listing()
    found = listing.named(name)
    if told is not None and told.get("found") == 1:
        ids = array("I", told["path"])
        found = listing.along(told["namespace"], ids)[-1:]  # its id is the file's, on the disk
        found = [span for span in found if span.end == len(ids)]
        if not found:  # it never comes to the disk
            _tell_pinned(told["id"], len(ids), pinned=pinned, as_json=as_json)
            return
    if len(found) != 1:
        what = f"{counted(len(found), 'span')} begin with" if found else "no span has"
        raise click.ClickException(f"{what} the id {name!r}; llm mlx-cached tree shows the ids")
    (span,) = found
    path = listing.path(span)
    store.pin(span.namespace, path, pinned=pinned)
    if not any(s.file_id == span.file_id and s.pinned == pinned for s in store.listing().spans):
        raise click.ClickException(f"the span {span.id} was evicted meanwhile")
    _tell_pinned(span.file_id, len(path), pinned=pinned, as_json=as_json)


def _told_by_served(ask: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The result of a model over several machines, if the span is its part; else None."""
    for name in served_names():
        told = seen_by_host(ask, f"nothing of {name} is pinned or unpinned", served=name)
        if told is not None and told.get("found") == 1:
            return told
    return None


def _tell_pinned(file_id: str, tokens: int, *, pinned: bool, as_json: bool) -> None:
    from ..cache.disk.listing import ID_LENGTH

    if as_json:
        show_json({"id": file_id, "pinned": pinned, "tokens": tokens})
    else:
        state = "pinned" if pinned else "not pinned"
        click.echo(f"{file_id[:ID_LENGTH]} is {state}: {counted(tokens, 'token')}")


def _shown(listing: Listing, told: Mapping[str, Any] | None) -> list[ShownSpan]:
    """The stored spans, then those that only the host's memory has."""
    held, alone = (told or {}).get("held", {}), (told or {}).get("alone", [])
    stored = [ShownSpan.stored(span, held.get(span.file_id, 0)) for span in listing.spans]
    return stored + [ShownSpan(**one) for one in alone]


def _roots(rows: Sequence[ShownSpan], model: str | None) -> dict[str, str]:
    """The namespaces with their models, of a model or of all; ValueError where it has none."""
    found = {row.namespace: row.model for row in rows}
    if model is None:
        return found
    wanted = stored_name(model, found.values(), found)
    named = wanted in found.values()
    return {
        namespace: name
        for namespace, name in found.items()
        if (name == wanted if named else namespace.startswith(wanted))
    }


class _Words:
    """The first words of spans, if asked for: from the host, or found here."""

    def __init__(self, *, wanted: bool, told: Mapping[str, Any] | None) -> None:
        self._wanted = wanted
        self._told: Mapping[str, str] | None = (told or {}).get("texts")
        self._here: FirstWords | None = None

    def of(self, row: ShownSpan) -> str | None:
        if not self._wanted:
            return None
        if self._told is not None:
            return self._told.get(row.id)
        if self._here is None:
            from ..models.tokenizer_alone import FirstWords

            self._here = FirstWords()
        return self._here.of(row.model, row.first_tokens)


def _lines(rows: Sequence[ShownSpan], words: _Words) -> Iterator[TreeLine]:
    """The spans of a namespace with their depths, which grow only where paths part."""
    below: dict[str, list[ShownSpan]] = {}
    for row in sorted(rows, key=lambda row: (row.start, row.id)):
        below.setdefault(row.parent, []).append(row)
    waiting = [(0, "", row) for row in reversed(below.get("", []))]
    while waiting:
        depth, mark, row = waiting.pop()
        text = words.of(row)
        yield TreeLine(depth, _parts(row, mark), quoted(text) if text else "")
        next_ones = below.get(row.id, [])
        if len(next_ones) == 1 and next_ones[0].start == row.end:
            waiting.append((depth, "+ ", next_ones[0]))
        else:
            waiting.extend((depth + 1, "", one) for one in reversed(next_ones))


def _parts(row: ShownSpan, mark: str) -> list[str]:
    """The columns for a span; `mark` stands before its id."""
    from ..cache.disk.listing import ID_LENGTH
    from ..cache.sizes import format_size

    place = f"{row.start}-{row.end}" if row.end > row.start else f"checkpoint at {row.start}"
    parts = [mark + row.id[:ID_LENGTH], place, row.tier, format_size(row.bytes)]
    parts.append(counted(row.hits, "hit"))
    return parts + ["pinned"] * row.pinned + [_where(row)] * (row.in_memory > 0)


def _where(row: ShownSpan) -> str:
    if not row.on_disk:
        return "in memory alone"
    whole = row.in_memory == row.end - row.start
    return "in memory" if whole else f"in memory to {row.start + row.in_memory}"


def _plain(row: ShownSpan, words: _Words) -> dict[str, Any]:
    text = words.of(row)
    return {
        "id": row.id,
        "parent": row.parent or None,
        "namespace": row.namespace,
        "model": row.model,
        "tier": row.tier,
        "start": row.start,
        "end": row.end,
        "bytes": row.bytes,
        "hits": row.hits,
        "used_at": row.used_at,
        "pinned": row.pinned,
        "resumes": row.resumes,
        "in_memory": row.in_memory,
        "on_disk": row.on_disk,
        **({} if text is None else {"text": text}),
    }
