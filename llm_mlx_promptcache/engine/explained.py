"""An answered prompt rendered again: how much of it is stored, and where other paths part."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..cache.disk.listing import stored_length
from ..models.references import is_hub_id, served_name, shown

if TYPE_CHECKING:
    from ..cache.disk.listing import Listing, Parting
    from ..cache.trie import Tokens
    from ..chat.transcript import Transcript
    from ..models.chat_tokenizer import TemplateTokenizer
    from .request import GenerationRequest

_BEFORE: Final = 12  # tokens shown before the place where paths part
_AFTER: Final = 16


class AnsweredPrompt(NamedTuple):
    """A prompt as it was asked; `rendered` is what its answer recorded of the rendering.

    `reference` is the model that answered, `namespace` where its rows went.
    """

    request: GenerationRequest
    reference: str
    namespace: str
    fingerprint: str
    rendered: Mapping[str, Any]


class Explained(NamedTuple):
    """The prompt's tokens, how much of them is stored now, and the nearest other path if any.

    `now` has `prompt` and `stored` (counts of tokens), `spans` (ids) and `undrafted` (why this
    model's answers are not drafted, "" where they are, None where that is not known yet); `nearest`
    has `at`, `span`, `in`, and the texts `before`, `prompt` and `stored`.
    """

    ids: Tokens[int]
    now: dict[str, Any]
    nearest: dict[str, Any] | None


def explained(asked: AnsweredPrompt, listing: Listing) -> Explained:
    """Compare a prompt with a listing of the disk; ValueError if its tokenizer is not here.

    Loads the model's tokenizer, and no weights.
    """
    namespace = asked.namespace
    named = [span.model for span in listing.spans if span.namespace == namespace and span.model]
    # The model's name of then may mean another one now; the store knows.
    tokenizer = tokenizer_here(named[0] if named else asked.reference)
    transcript = rendered(asked, tokenizer)
    ids: Tokens[int] = transcript.ids
    chain = listing.along(namespace, ids)
    now = {
        "prompt": len(ids),
        "stored": stored_length(chain, ids),
        "spans": [span.file_id for span in chain],
        "undrafted": _undrafted(asked),
    }
    parting = listing.nearest(namespace, ids)
    return Explained(ids, now, parting and _nearest(parting, transcript, tokenizer))


def _undrafted(asked: AnsweredPrompt) -> str | None:
    from ..models.facts import model_facts
    from .draft_probe import remembered
    from .drafting import NO_DRAFTS

    if served_name(asked.reference):
        return NO_DRAFTS
    return remembered(asked.fingerprint, model_facts())


def tokenizer_here(reference: str) -> TemplateTokenizer:
    """The tokenizer of a model that answered; ValueError where it is not on this machine."""
    from ..models.tokenizer_alone import tokenizer_of

    found = tokenizer_of(reference)
    if found is None:
        what = f"; llm mlx-cached download {reference} fetches it" if is_hub_id(reference) else ""
        raise ValueError(
            f"the answer is of the model {shown(reference)!r}, which is not on this machine, and"
            f" its tokenizer is needed{what}"
        )
    return found


def rendered(asked: AnsweredPrompt, tokenizer: TemplateTokenizer) -> Transcript:
    """The prompt as the engine renders it: with the date and arguments that the answer recorded."""
    from ..chat.rendering import render, render_continued

    request = asked.request
    arguments, now = asked.rendered.get("arguments"), asked.rendered.get("now")
    make = render_continued if request.continue_final else render
    return make(
        request.messages,
        tokenizer,
        fingerprint=asked.fingerprint,
        tools=request.tools,
        template_arguments={**(arguments or {}), **request.template_arguments},
        now=datetime.fromisoformat(now) if isinstance(now, str) else None,
    )


def _nearest(
    parting: Parting, transcript: Transcript, tokenizer: TemplateTokenizer
) -> dict[str, Any]:
    ids, at, decode = transcript.ids, parting.at, tokenizer.decode
    return {
        "at": at,
        "span": parting.span.file_id,
        "in": _message_at(transcript, at),
        "before": decode(ids[max(0, at - _BEFORE) : at]),
        "prompt": decode(ids[at : at + _AFTER]),
        "stored": decode(parting.tokens[:_AFTER]),
    }


def _message_at(transcript: Transcript, place: int) -> str:
    """The part of the prompt that holds a token, named by the boundary that ends it."""
    for boundary in transcript.boundaries:
        if place < boundary.position:
            return f"a message of tier {boundary.tier}"
    return "what asks for the answer"
