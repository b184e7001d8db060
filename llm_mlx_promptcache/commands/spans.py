"""Commands about what is stored: its tree, and what of it stays whatever happens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..engine.pool import disk_store
from .shown import json_option, label_of, quoted, show_json, show_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..cache.disk.listing import ListedSpan, Listing
    from ..models.chat_tokenizer import TemplateTokenizer

_WORDS = 16  # tokens of a span that are decoded for its first words


@click.command()
@click.option("--model", help="Only of this model, as stats shows it, or a name.")
@click.option("--text", is_flag=True, help="With each span's first words: your conversations.")
@json_option
def tree(*, model: str | None, text: bool, as_json: bool) -> None:
    """Show what is stored on disk as a tree.

    A line is a span: its id, the tokens of the path that it holds, its tier, size, and uses. One
    that begins with "+" goes on from the line above it.
    """
    listing = disk_store().listing()
    wanted = None if model is None else label_of(model)
    roots: dict[str, str] = {}
    for span in listing.spans:
        if wanted is None or wanted in (span.model, span.namespace):
            roots[span.namespace] = span.model
    words = _Words(wanted=text)
    if as_json:
        show_json([_plain(span, words) for span in listing.spans if span.namespace in roots])
        return
    for namespace, name in roots.items():
        show_tree(f"{name or 'unnamed'} ({namespace[:8]})", _lines(listing, namespace, words))
    if not roots:
        click.echo("nothing is stored" if wanted is None else f"nothing is stored of {wanted}")


@click.command()
@click.argument("span", metavar="ID")
@json_option
def pin(*, span: str, as_json: bool) -> None:
    """Keep the path to a span from being evicted; ID is what tree shows."""
    _set_pinned(span, pinned=True, as_json=as_json)


@click.command()
@click.argument("span", metavar="ID")
@json_option
def unpin(*, span: str, as_json: bool) -> None:
    """Let a pinned span be evicted again; ID is what tree shows."""
    _set_pinned(span, pinned=False, as_json=as_json)


def _set_pinned(name: str, *, pinned: bool, as_json: bool) -> None:
    store = disk_store()
    listing = store.listing()
    found = listing.named(name)
    if len(found) != 1:
        what = f"{len(found)} spans begin with" if found else "no span has"
        raise click.ClickException(f"{what} the id {name!r}; llm mlx-cached tree shows the ids")
    (span,) = found
    path = listing.path(span)
    store.pin(span.namespace, path, pinned=pinned)
    if not any(s.file_id == span.file_id and s.pinned == pinned for s in store.listing().spans):
        raise click.ClickException(f"the span {span.id} was evicted meanwhile")
    if as_json:
        show_json({"id": span.file_id, "pinned": pinned, "tokens": len(path)})
    else:
        click.echo(f"{span.id} is {'pinned' if pinned else 'not pinned'}: {len(path)} tokens")


class _Words:
    """The first words of spans, where they were asked for and the model is here."""

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self._tokenizers: dict[str, TemplateTokenizer | None] = {}

    def of(self, span: ListedSpan) -> str | None:
        if not self._wanted:
            return None
        if span.model not in self._tokenizers:
            from ..models.tokenizer_alone import tokenizer_of

            self._tokenizers[span.model] = tokenizer_of(span.model)
        tokenizer = self._tokenizers[span.model]
        return tokenizer.decode(span.tokens[:_WORDS]) if tokenizer is not None else None


def _lines(listing: Listing, namespace: str, words: _Words) -> Iterator[tuple[int, str]]:
    """The spans of a namespace with their depths; only where paths part it grows."""
    waiting = [(0, "", span) for span in reversed(listing.below()) if span.namespace == namespace]
    while waiting:
        depth, mark, span = waiting.pop()
        yield depth, mark + _line(span, words.of(span))
        below = listing.below(span.file_id)
        if len(below) == 1 and below[0].start == span.end:
            waiting.append((depth, "+ ", below[0]))
        else:
            waiting.extend((depth + 1, "", one) for one in reversed(below))


def _line(span: ListedSpan, text: str | None) -> str:
    from ..cache.sizes import format_size

    place = f"{span.start}-{span.end}" if len(span.tokens) else f"checkpoint at {span.start}"
    uses = f"{span.hits} hit" + "s" * (span.hits != 1)
    parts = [span.id, place, span.tier, format_size(span.bytes), uses]
    return "  ".join(parts + ["pinned"] * span.pinned + ([quoted(text)] if text else []))


def _plain(span: ListedSpan, words: _Words) -> dict[str, Any]:
    text = words.of(span)
    return {
        "id": span.file_id,
        "parent": span.parent or None,
        "namespace": span.namespace,
        "model": span.model,
        "tier": span.tier,
        "start": span.start,
        "end": span.end,
        "bytes": span.bytes,
        "hits": span.hits,
        "used_at": span.used_at,
        "pinned": span.pinned,
        "resumes": span.resumes,
        **({} if text is None else {"text": text}),
    }
