"""`llm mlx-cached explain`: what a logged answer reused, and where its prompt parts from others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..config import load_settings
from ..engine.pool import disk_store
from ..models.references import is_hub_id, shown
from .host import seen_by_host
from .shown import json_option, quoted, show_json, show_line

if TYPE_CHECKING:
    from ..cache.disk.listing import ListedSpan, Listing, Parting
    from ..cache.trie import Tokens
    from ..chat.transcript import Transcript
    from ..llm_adapter.logs import LoggedAnswer
    from ..models.chat_tokenizer import TemplateTokenizer

_BEFORE, _AFTER = 12, 16  # tokens shown around the place where paths part


@click.command()
@click.argument("response_id", required=False)
@json_option
def explain(*, response_id: str | None, as_json: bool) -> None:
    """Tell what was reused for a logged answer, and where its prompt left the nearest stored path.

    RESPONSE_ID is an id of llm's logs; left out, the latest answer of ours. Shows some of the
    prompt's text.
    """
    from ..llm_adapter.logs import logged_answer

    found = _explained(logged_answer(response_id, load_settings()), disk_store().listing())
    ask = {"ask": "held", "namespace": found.answer.namespace, "tokens": found.ids}
    told = seen_by_host(ask) if found.ids else None
    found = found._replace(in_memory=None if told is None else int(told.get("tokens", 0)))
    if as_json:
        show_json(found.plain())
    else:
        for line in found.lines():
            show_line(line)


class _Explained(NamedTuple):
    """An answer, its prompt as it is rendered now, and what is stored of it now."""

    answer: LoggedAnswer
    tokenizer: TemplateTokenizer
    transcript: Transcript
    chain: list[ListedSpan]
    stored: int
    parting: Parting | None
    in_memory: int | None = None  # how many of its tokens the host has there, if there is one

    @property
    def ids(self) -> list[int]:
        """The prompt's tokens."""
        return self.transcript.ids.tolist()

    def plain(self) -> dict[str, Any]:
        """The same for programs."""
        answer, ids = self.answer, self.transcript.ids
        return {
            "response": answer.id,
            "model": answer.model,
            "prompt": answer.prompt,
            "cached": answer.cached,
            "why": answer.why,
            "reuse": dict(answer.reuse),
            "now": {
                "prompt": len(ids),
                "stored": self.stored,
                "spans": [span.file_id for span in self.chain],
                "in_memory": self.in_memory,
            },
            "nearest": None if self.parting is None else self._nearest(self.parting),
        }

    def lines(self) -> list[str]:
        """A line for each thing that is known."""
        answer, now = self.answer, len(self.transcript.ids)
        made = [f"{answer.id} of {answer.model}"]
        if answer.prompt is not None and answer.cached is not None:
            fresh = answer.prompt - answer.cached
            made.append(
                f"then: {answer.cached} of {answer.prompt} prompt tokens were cached, {fresh} were"
                f" prefilled{': ' + answer.why if answer.why else ''}"
            )
        if answer.prompt not in (None, now):
            made.append(
                f"its prompt is {now} tokens when rendered again: the model's template, or what"
                " llm does not log (a system prompt of a later turn), is not as it was"
            )
        spans = ", ".join(span.id for span in self.chain) or "none"
        beside = "" if self.in_memory is None else f"; the host has {self.in_memory} in memory"
        made.append(
            f"now: {self.stored} of {now} prompt tokens are stored, in spans {spans}{beside}"
        )
        return made + self._parting_lines()

    def _parting_lines(self) -> list[str]:
        if self.parting is None:
            return ["no other stored path begins as this prompt does and goes on otherwise"]
        near = self._nearest(self.parting)
        return [
            f"the nearest other path, to span {self.parting.span.id}, parts from the prompt at"
            f" token {near['at']}, in {near['in']}",
            f"  both:        {quoted(near['before'], 200)}",
            f"  this prompt: {quoted(near['prompt'], 200)}",
            f"  stored:      {quoted(near['stored'], 200)}",
        ]

    def _nearest(self, parting: Parting) -> dict[str, Any]:
        ids, at, decode = self.transcript.ids, parting.at, self.tokenizer.decode
        return {
            "at": at,
            "span": parting.span.file_id,
            "in": self._message_at(at),
            "before": decode(ids[max(0, at - _BEFORE) : at]),
            "prompt": decode(ids[at : at + _AFTER]),
            "stored": decode(parting.tokens[:_AFTER]),
        }

    def _message_at(self, place: int) -> str:
        """Which part of the prompt a token stands in, by the boundary that ends it."""
        for boundary in self.transcript.boundaries:
            if place < boundary.position:
                return f"a message of tier {boundary.tier}"
        return "what asks for the answer"


def _explained(answer: LoggedAnswer, listing: Listing) -> _Explained:
    from ..cache.disk.listing import stored_length

    namespace = answer.namespace
    named = [span.model for span in listing.spans if span.namespace == namespace and span.model]
    # What the model was called then may be another one now; the store knows.
    reference = named[0] if named else answer.reference
    tokenizer = _tokenizer(reference)
    transcript = _rendered(answer, tokenizer)
    ids: Tokens[int] = transcript.ids
    chain = listing.along(namespace, ids)
    parting = listing.nearest(namespace, ids)
    return _Explained(answer, tokenizer, transcript, chain, stored_length(chain, ids), parting)


def _tokenizer(reference: str) -> TemplateTokenizer:
    from ..models.tokenizer_alone import tokenizer_of

    found = tokenizer_of(reference)
    if found is None:
        what = f"; llm mlx-cached download {reference} fetches it" if is_hub_id(reference) else ""
        raise ValueError(
            f"the answer is of the model {shown(reference)!r}, which is not on this machine, and"
            f" its tokenizer is needed{what}"
        )
    return found


def _rendered(answer: LoggedAnswer, tokenizer: TemplateTokenizer) -> Transcript:
    """The prompt as the engine renders it: with the date and arguments that the answer recorded."""
    from datetime import datetime

    from ..chat.rendering import render

    request, recorded = answer.request, answer.record.rendered
    arguments = recorded.get("arguments")
    now = recorded.get("now")
    return render(
        request.messages,
        tokenizer,
        fingerprint=answer.record.fingerprint,
        tools=request.tools,
        template_arguments={**(arguments or {}), **request.template_arguments},
        now=datetime.fromisoformat(now) if isinstance(now, str) else None,
    )
