"""Checks of answers against what was asked, where no grammar could enforce it."""

from __future__ import annotations

import json
from collections.abc import Iterator

from ..chat.answer_parts import Answer
from ..chat.arguments import parameters_of
from ..chat.grammar import Grammar
from ..chat.schema_check import misfits
from .events import Misfit
from .request import GenerationRequest


def misfits_of(
    answer: Answer, request: GenerationRequest, grammar: Grammar | None
) -> tuple[Misfit, ...]:
    """The parts of their schemas that calls and document break; none if a grammar held all."""
    unheld = {one.tool for one in grammar.unheld} if grammar is not None else set()
    misfits = list(_of_calls(answer, request, None if grammar is None else unheld))
    document = request.schema is not None and not answer.calls and answer.cut is None
    if document and "" in unheld:
        misfits += _of_document(answer.text, request)
    return tuple(misfits)


def _of_calls(
    answer: Answer, request: GenerationRequest, unheld: set[str] | None
) -> Iterator[Misfit]:
    parameters = parameters_of(request.tools) if answer.calls else {}
    for call in answer.calls:
        schema = parameters.get(call.name)
        if schema and (unheld is None or call.name in unheld):
            for what in misfits(dict(call.arguments), schema):
                yield Misfit(call.id, str(what))


def _of_document(text: str, request: GenerationRequest) -> Iterator[Misfit]:
    assert request.schema is not None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return
    for what in misfits(document, request.schema):
        yield Misfit("", str(what))
