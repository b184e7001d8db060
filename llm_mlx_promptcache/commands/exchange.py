"""`llm mlx-cached export` and `import`: a prefix as one file, for users of the same model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, TypedDict

import click

from ..config import load_settings
from ..engine.pool import disk_store
from ..models.names import resolve
from .host import seen_by_host
from .shown import counted, json_option, model_option, show_json, were

if TYPE_CHECKING:
    from typing import Unpack

    from ..cache.disk.store import DiskStore
    from ..engine.exchange import ChosenPath


_PACKAGE: Final = logging.getLogger(__name__.partition(".")[0])


class _ExportFlags(TypedDict):
    """The options that choose the prefix to export."""

    span: str | None
    response: str | None
    model: str
    system: IO[str] | None
    tools: tuple[str, ...]
    cache_salt: str | None


salt_option = click.option(
    "--cache-salt", metavar="SALT", help="The cache_salt that it belongs to."
)


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--span", metavar="ID", help="The path to this span; ID is what tree shows.")
@click.option("--response", metavar="ID", help="The prompt of this answer in llm's logs.")
@model_option
@click.option(
    "-s",
    "--system",
    type=click.File(),
    help="The file of a system prompt; - is stdin.",
)
@click.option("tools", "-T", "--tool", multiple=True, help="A tool of llm's; can be repeated.")
@salt_option
@json_option
def export(*, file: Path, as_json: bool, **asked: Unpack[_ExportFlags]) -> None:
    """Write a stored prefix to FILE, for somebody else with the same model.

    Choose it with --span, --response, or the options of warm (-s, -T). The file holds its text, as
    token ids. Nothing is computed: run llm mlx-cached warm first.
    """
    from ..cache.sizes import format_size
    from ..engine.exchange import export_chosen

    seen_by_host({"ask": "flush"}, "what it has in memory alone is not exported")
    store = disk_store()
    chosen = _chosen(store, asked)
    done = export_chosen(chosen, store, file)
    if as_json:
        wanted = len(chosen.tokens)
        show_json({"file": str(file), "tokens": done.tokens, "of": wanted, "bytes": done.bytes})
        return
    whole = counted(len(chosen.tokens), "token")
    held = whole if done.tokens == len(chosen.tokens) else f"{done.tokens} of {whole}"
    verb = "is" if done.tokens == 1 else "are"
    click.echo(f"{held} {verb} in {_shown(file)}: {format_size(done.bytes)}")


@click.command(name="import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-m", "--model", help="The model here; default: the one that FILE names.")
@salt_option
@json_option
def import_(*, file: Path, model: str | None, cache_salt: str | None, as_json: bool) -> None:
    """Import a prefix that somebody exported to FILE, if everything that matters matches.

    All of it is verified first, and kept or refused as a whole. Import files only from people you
    trust: the rows that a model computed can be checked only by computing them again.
    """
    from ..cache.disk.listing import ID_LENGTH
    from ..engine.exchange import import_file

    reference = None if model is None else resolve(model, load_settings()).reference
    store = disk_store()
    with _reason_said():
        done = import_file(file, store, reference=reference, cache_salt=cache_salt or "")
    found = store.listing().along(done.namespace, done.path)
    file_id = found[-1].file_id if found else ""
    where = f"to the span {file_id[:ID_LENGTH]}"
    if as_json:
        told = {"tokens": done.tokens, "known": done.known, "model": done.model, "span": file_id}
        show_json(told)
    elif done.known >= done.tokens:
        count = counted(done.tokens, "token")
        click.echo(f"all {count} {were(done.tokens)} stored already, {where}")
    else:
        verb = "is" if done.tokens == 1 else "are"
        click.echo(f"{counted(done.tokens, 'token')} of {done.model} {verb} stored now, {where}")


class _KeptWarnings(logging.Handler):
    """A handler that keeps warnings, to be printed later."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.lines.append(record.getMessage())


@contextmanager
def _reason_said() -> Iterator[None]:
    """Say in one line that nothing is imported, and the cache's warning that tells why."""
    from ..engine.exchange import NotStored

    heard = _KeptWarnings()
    _PACKAGE.addHandler(heard)
    try:
        yield
    except NotStored as error:
        if not heard.lines:
            raise
        why = heard.lines.pop()
        raise click.ClickException(f"nothing of {error.file} is imported: {why}") from None
    finally:
        _PACKAGE.removeHandler(heard)
        for line in heard.lines:
            click.echo(line, err=True)


def _shown(file: Path) -> str:
    """A file's name for a terminal, which odd ones would set up otherwise."""
    name = str(file)
    return name if name.isprintable() else ascii(name)


def _chosen(store: DiskStore, asked: _ExportFlags) -> ChosenPath:
    """The one path that was asked for; UsageError if there is none, or several."""
    by_prompt = asked["system"] is not None or bool(asked["tools"])
    if [asked["span"] is not None, asked["response"] is not None, by_prompt].count(True) != 1:
        raise click.UsageError("give one of --span ID, --response ID, or -s FILE with -T NAME")
    if asked["span"] is not None:
        return _span(store, asked["span"], asked["cache_salt"] or "")
    if asked["response"] is not None:
        return _answer(asked["response"], asked["cache_salt"])
    return _prompt(asked)


def _span(store: DiskStore, name: str, cache_salt: str) -> ChosenPath:
    from ..engine.exchange import span_chosen

    listing = store.listing()
    found = listing.named(name)
    if len(found) != 1:
        what = f"{counted(len(found), 'span')} begin with" if found else "no span on the disk has"
        raise click.ClickException(f"{what} the id {name!r}; llm mlx-cached tree shows the ids")
    (span,) = found
    return span_chosen(listing, span, store.layout(span.namespace), cache_salt)


def _answer(response: str, cache_salt: str | None) -> ChosenPath:
    from ..engine.exchange import answer_chosen
    from ..engine.explained import AnsweredPrompt
    from ..llm_adapter.logs import logged_answer

    answer = logged_answer(response, load_settings())
    record, request = answer.record, answer.request
    if cache_salt is not None:
        request = replace(request, cache_salt=cache_salt)
    return answer_chosen(
        AnsweredPrompt(
            request, answer.reference, answer.namespace, record.fingerprint, record.rendered
        )
    )


def _prompt(asked: _ExportFlags) -> ChosenPath:
    from ..engine.exchange import prompt_chosen
    from .warm import request_of

    named = resolve(asked["model"], load_settings())
    text = asked["system"].read() if asked["system"] is not None else ""
    request = replace(request_of(named, text, asked["tools"]), warm=True)
    if asked["cache_salt"] is not None:
        request = replace(request, cache_salt=asked["cache_salt"])
    return prompt_chosen(named.reference, request)
