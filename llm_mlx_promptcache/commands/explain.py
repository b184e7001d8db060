"""`llm mlx-cached explain`: a logged answer's reuse, and where its prompt parts from others."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from ..config import load_settings
from ..engine.pool import disk_store
from .host import seen_by_host
from .shown import counted, json_option, quoted, show_json, show_line, were

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..llm_adapter.logs import LoggedAnswer


@click.command()
@click.argument("response_id", required=False)
@json_option
def explain(*, response_id: str | None, as_json: bool) -> None:
    """Show what a logged answer reused, and where its prompt left the nearest stored path.

    RESPONSE_ID is an id in llm's logs; default: the latest answer of a model of this plugin. Shows
    some of the prompt's text.
    """
    from ..llm_adapter.logs import logged_answer

    answer = logged_answer(response_id, load_settings())
    found = _by_host(answer) or _here(answer)
    if as_json:
        show_json(_plain(answer, found))
    else:
        for line in _lines(answer, found["now"], found["nearest"]):
            show_line(line)


def _by_host(answer: LoggedAnswer) -> Mapping[str, Any] | None:
    """The host's findings, made with the tokenizer it has; None if no host can tell."""
    from ..engine.wire import to_json

    ask = {
        "ask": "explain",
        "request": to_json(answer.request),
        "reference": answer.reference,
        "namespace": answer.namespace,
        "fingerprint": answer.record.fingerprint,
        "rendered": dict(answer.record.rendered),
    }
    with suppress(ValueError):  # a host of another build, maybe; other faults are found here too
        return seen_by_host(ask)
    return None


def _here(answer: LoggedAnswer) -> dict[str, Any]:
    """The same, found in this process; the contents of a host's memory are not known."""
    from ..engine.explained import AnsweredPrompt, explained

    record = answer.record
    asked = AnsweredPrompt(
        answer.request, answer.reference, answer.namespace, record.fingerprint, record.rendered
    )
    found = explained(asked, disk_store().listing())
    return {"now": {**found.now, "in_memory": None}, "nearest": found.nearest}


def _plain(answer: LoggedAnswer, found: Mapping[str, Any]) -> dict[str, Any]:
    """An answer and the findings, as programs read them."""
    return {
        "response": answer.id,
        "model": answer.model,
        "prompt": answer.prompt,
        "cached": answer.cached,
        "why": answer.why,
        "reuse": dict(answer.reuse),
        "now": found["now"],
        "nearest": found["nearest"],
    }


def _lines(
    answer: LoggedAnswer, now: Mapping[str, Any], nearest: Mapping[str, Any] | None
) -> Iterator[str]:
    """A line for each known fact."""
    from ..cache.disk.listing import ID_LENGTH

    yield f"{answer.id} of {answer.model}"
    if answer.prompt is not None and answer.cached is not None:
        why = f": {answer.why}" if answer.why else ""
        new = answer.prompt - answer.cached
        yield (
            f"then: {answer.cached} of {counted(answer.prompt, 'prompt token')}"
            f" {were(answer.cached)} cached, {new} {were(new)} prefilled{why}"
        )
    if answer.prompt not in (None, now["prompt"]):
        yield (
            f"its prompt is {counted(now['prompt'], 'token')} when rendered again: the model's"
            " template, or something that llm does not log (a later turn's system prompt), has"
            " changed"
        )
    spans = ", ".join(file_id[:ID_LENGTH] for file_id in now["spans"]) or "none"
    held = now["in_memory"]
    beside = "" if held is None else f"; the host has {held} in memory"
    stored = f"{now['stored']} of {counted(now['prompt'], 'prompt token')}"
    yield f"now: {stored} {'is' if now['stored'] == 1 else 'are'} stored, in spans {spans}{beside}"
    if why := _undrafted(now["undrafted"]):
        yield why
    if nearest is None:
        yield "no other stored path begins like this prompt and goes on differently"
        return
    yield (
        f"the nearest other path, to span {nearest['span'][:ID_LENGTH]}, parts from the prompt at"
        f" token {nearest['at']}, in {nearest['in']}"
    )
    yield f"  both:        {quoted(nearest['before'], 200)}"
    yield f"  this prompt: {quoted(nearest['prompt'], 200)}"
    yield f"  stored:      {quoted(nearest['stored'], 200)}"


def _undrafted(why: str | None) -> str:
    """The line about drafts; "" where a model's answers are drafted."""
    if why is None:
        return (
            "whether this model's answers are drafted is not known yet: it is tested before its"
            " first draft"
        )
    return f"answers of this model are not drafted: {why}" if why else ""
