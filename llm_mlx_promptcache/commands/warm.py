"""`llm mlx-cached warm`: a system prompt and tools computed before anybody asks."""

from __future__ import annotations

from dataclasses import replace
from typing import IO, TYPE_CHECKING

import click

from ..config import MODEL_ID, load_settings
from .shown import json_option, show_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import llm

    from ..cache.disk import DiskStore
    from ..engine.request import Event, Finished, GenerationRequest


@click.command()
@click.option("-m", "--model", default=MODEL_ID, help="A registered name or alias, or a hub id.")
@click.option(
    "-s", "--system", type=click.File(), help="The file of the system prompt; - is stdin."
)
@click.option("tools", "-T", "--tool", multiple=True, help="A tool of llm's; can be repeated.")
@click.option("keep", "--pin", is_flag=True, help="Never evict it.")
@json_option
def warm(
    model: str, system: IO[str] | None, tools: tuple[str, ...], keep: bool, as_json: bool
) -> None:
    """Compute and store what prompts with this system prompt and these tools begin with."""
    from ..engine.pool import close_engines, disk_store, engine_for

    if system is None and not tools:
        raise click.UsageError("give a system prompt (-s FILE) or tools (-T NAME)")
    request = _request(system.read() if system is not None else "", tools)
    request = replace(request, warm=True, pin=keep)
    store = disk_store()
    before = _pinned(store)
    finished = _run(engine_for(load_settings().reference(model)).generate(request))
    close_engines()  # what it stored is on the disk then
    pinned = {stem: id for stem, id in _pinned(store).items() if stem not in before}
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
    click.echo(f"{usage.cached} tokens were cached, {usage.prefilled} were prefilled{state}")


def _pinned(store: DiskStore) -> dict[str, str]:
    """The ids of pinned spans, by their whole names."""
    return {span.stem: span.id for span in store.listing().spans if span.pinned}


def _run(events: Iterator[Event]) -> Finished:
    """Follow a request to its end, its prefill shown on a terminal."""
    from ..engine.request import Finished
    from ..llm_adapter.progress import WaitingLine

    with WaitingLine() as line:
        for event in events:
            line.told(event)
            if isinstance(event, Finished):
                return event
    raise ValueError("the engine ended without an answer; run it again")


def _request(system: str, names: Sequence[str]) -> GenerationRequest:
    """What warms the beginning that every prompt of `llm -s SYSTEM -T TOOL` shares."""
    import llm

    from ..llm_adapter.models import MlxCached
    from ..llm_adapter.requests import question

    model = MlxCached()
    prompt = llm.Prompt(  # type: ignore[no-untyped-call]
        None, model, system=system or None, tools=_tools(names)
    )
    return question(prompt, model.model_id).request


def _tools(names: Sequence[str]) -> list[llm.Tool | type[llm.Toolbox] | llm.Toolbox]:
    """The tools of these names, as `llm -T` takes them; ValueError where there is none."""
    import llm

    known = llm.get_tools()
    for name in names:
        if name not in known:
            raise ValueError(f"llm has no tool {name!r}; llm tools lists them")
    found = [known[name] for name in names]
    return [tool() if isinstance(tool, type) else tool for tool in found]
