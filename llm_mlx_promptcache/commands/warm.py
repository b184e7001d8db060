"""`llm mlx-cached warm`: a system prompt and tools computed before anybody asks."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import IO, TYPE_CHECKING

import click

from ..config import load_settings
from ..models.names import NamedModel, resolve
from .host import seen_by_host
from .shown import counted, json_option, model_option, show_json, were

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import llm

    from ..cache.disk.store import DiskStore
    from ..engine.events import Event, Finished
    from ..engine.request import GenerationRequest


@click.command()
@model_option
@click.option(
    "-s", "--system", type=click.File(), help="A file with the system prompt; - is stdin."
)
@click.option("tools", "-T", "--tool", multiple=True, help="A tool of llm's; can be repeated.")
@click.option("keep", "--pin", is_flag=True, help="Never evict it.")
@json_option
def warm(
    *, model: str, system: IO[str] | None, tools: tuple[str, ...], keep: bool, as_json: bool
) -> None:
    """Compute and store the common start of prompts with this system prompt and these tools."""
    from ..engine.pool import disk_store
    from ..host.engines import engine_for

    if system is None and not tools:
        raise click.UsageError("give a system prompt (-s FILE) or tools (-T NAME)")
    text = system.read() if system is not None else ""
    if not text and not tools:
        raise ValueError("the system prompt is empty; give a file with text, or tools (-T NAME)")
    named = resolve(model, load_settings())
    request = replace(request_of(named, text, tools), warm=True, pin=keep)
    _check_kept(request)
    store = disk_store()
    before = _pinned(store)
    finished = _run(engine_for(named.reference).generate(request))
    _have_written()
    pinned = {file_id: id for file_id, id in _pinned(store).items() if file_id not in before}
    usage = finished.usage
    if as_json:
        show_json(
            {
                "tokens": usage.prompt,
                "cached": usage.cached,
                "prefilled": usage.prefilled,
                "pinned": list(pinned),
            }
        )
        return
    ids = ", ".join(pinned.values())
    state = f"; pinned: {ids}" if pinned else "; it was pinned already" if keep else ""
    cached = f"{counted(usage.cached, 'token')} {were(usage.cached)} cached"
    click.echo(f"{cached}, {usage.prefilled} {were(usage.prefilled)} prefilled{state}")


def _have_written() -> None:
    """Return once everything stored is on the disk, whoever computed it."""
    from ..engine.pool import close_engines

    seen_by_host({"ask": "flush"}, "what it computed may not be on the disk yet")
    close_engines()


def _pinned(store: DiskStore) -> dict[str, str]:
    """The ids of pinned spans, by their whole names."""
    return {span.file_id: span.id for span in store.listing().spans if span.pinned}


def _run(events: Iterator[Event]) -> Finished:
    """Follow a request to its end, with its prefill shown on a terminal."""
    from ..engine.events import Finished
    from ..llm_adapter.progress import WaitingLine

    with closing(WaitingLine()) as line:
        for event in events:
            line.show(event)
            if isinstance(event, Finished):
                return event
    raise ValueError("the engine ended without an answer; run it again")


def _check_kept(request: GenerationRequest) -> None:
    """ValueError if nothing of it would remain after this command."""
    from ..engine.pool import DISK_SWITCH, disk_store, uses_disk

    if not request.use_cache:
        raise ValueError(
            "nothing would be kept: the option cache is false; llm models options clear resets it"
        )
    if not request.on_disk:
        raise ValueError("nothing would be kept on the disk: llm's logs are off; llm logs on")
    if not uses_disk():
        raise ValueError(f"nothing would be kept on the disk: {DISK_SWITCH} is 0; unset it")
    if not disk_store().budget:
        raise ValueError(
            "nothing would be kept on the disk: its limit is 0; llm mlx-cached settings --disk auto"
        )


def request_of(named: NamedModel, system: str, tools: Sequence[str]) -> GenerationRequest:
    """The request that warms the common start of all prompts of `llm -m NAME -s SYSTEM -T TOOL`."""
    import llm

    from ..llm_adapter.models import MlxCached
    from ..llm_adapter.options import checked_options, set_options
    from ..llm_adapter.requests import question_of

    kept = named.registered
    model = MlxCached() if kept is None else MlxCached(kept.name, kept.reference)
    prompt = llm.Prompt(  # type: ignore[no-untyped-call]
        None,
        model,
        system=system or None,
        tools=_tools(tools),
        # llm has no options for a hub id or a folder, which are no models of its own.
        options=checked_options(set_options(model.model_id)) if named.model_id else None,
    )
    return question_of(prompt, model.model_id).request


def _tools(names: Sequence[str]) -> list[llm.Tool | type[llm.Toolbox] | llm.Toolbox]:
    """The tools of these names, as `llm -T` takes them; ValueError if one is missing."""
    import llm

    known = llm.get_tools()
    for name in names:
        if name not in known:
            raise ValueError(f"llm has no tool {name!r}; llm tools lists them")
    found = [known[name] for name in names]
    return [tool() if isinstance(tool, type) else tool for tool in found]
