"""`llm mlx-cached trace`: the cache's use as a trace without text, out of llm's own log."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Final

import click

from ..cache.traces import BLOCK, BlockHashes, TracedRequest
from ..config import load_settings
from ..models.progress import ProgressLine
from .shown import counted

if TYPE_CHECKING:
    from datetime import datetime

    from ..chat.transcript import Transcript
    from ..llm_adapter.logs import LoggedAnswer
    from ..models.chat_tokenizer import TemplateTokenizer

_MOST_BLOCK: Final = 1 << 16
_LACKS: Final = (
    "It lacks what llm did not log: prompts with llm's logs off or --no-log, and those of other"
    " programs (ChatMLXCached)."
)


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.File("w", encoding="utf-8"),
    default="-",
    help="A file; default: stdout.",
)
@click.option(
    "--block",
    type=click.IntRange(1, _MOST_BLOCK),
    default=BLOCK,
    show_default=True,
    help="Tokens of a block; public traces have 512 or 16.",
)
def trace(*, output: IO[str], block: int) -> None:
    """Export your use of the cache as block hashes and times, without any text or tokens.

    One JSON line for each prompt in llm's log, in the format of public traces: its time (in
    milliseconds from the first), its length and its answer's in tokens, and an id for each of its
    blocks. Ids are hashes under a random salt that is forgotten at once: they show which prompts
    begin alike, and nothing else. Prompts asked while llm's logs were off are not included.
    """
    export = _TraceExport(BlockHashes(block))
    count = 0
    with ProgressLine() as line:
        for request in export.requests():
            click.echo(request.line(), file=output)
            count += 1
            if sys.stderr.isatty() and not output.isatty():
                line(f"{counted(count, 'prompt')} rendered", 0, 0)
    for why, left_out in export.left_out.items():
        click.echo(f"{left_out} left out: {why}", err=True)
    click.echo(f"{counted(count, 'prompt')}. {_LACKS}", err=True)


@dataclass
class _TraceExport:
    """The log on its way to a trace; `left_out` counts the prompts left out, by reason."""

    hashes: BlockHashes
    left_out: dict[str, int] = field(default_factory=dict)
    _tokenizers: dict[str, TemplateTokenizer | None] = field(default_factory=dict)
    _first: datetime | None = None

    def requests(self) -> Iterator[TracedRequest]:
        """Each prompt in the order in which they came; ValueError if nothing was logged."""
        from ..llm_adapter.logs import logged_answers

        for answer in logged_answers(load_settings()):
            if answer is None or answer.at is None:
                self._leave_out("their log is incomplete (answers that were stopped)")
            elif (transcript := self._rendered(answer)) is not None:
                yield self._traced(answer, answer.at, transcript)

    def _rendered(self, answer: LoggedAnswer) -> Transcript | None:
        """The prompt as it was; None if it can't be restored."""
        from ..engine.explained import AnsweredPrompt, rendered

        tokenizer = self._tokenizer(answer.reference)
        if tokenizer is None:
            self._leave_out("their model is not on this machine")
            return None
        record = answer.record
        asked = AnsweredPrompt(
            answer.request, answer.reference, answer.namespace, record.fingerprint, record.rendered
        )
        transcript = None
        with suppress(ValueError):
            transcript = rendered(asked, tokenizer)
        if transcript is None or len(transcript.ids) != answer.prompt:
            self._leave_out(
                "they render differently now (a new template, a later turn's system prompt)"
            )
            return None
        return transcript

    def _tokenizer(self, reference: str) -> TemplateTokenizer | None:
        from ..engine.explained import tokenizer_here

        if reference not in self._tokenizers:
            self._tokenizers[reference] = None
            with suppress(ValueError):
                self._tokenizers[reference] = tokenizer_here(reference)
        return self._tokenizers[reference]

    def _traced(self, answer: LoggedAnswer, at: datetime, transcript: Transcript) -> TracedRequest:
        self._first = self._first or at
        ids = transcript.ids
        return TracedRequest(
            timestamp=max(0, round((at - self._first).total_seconds() * 1000)),
            input_length=len(ids),
            output_length=answer.generated or 0,
            hash_ids=self.hashes.of(answer.namespace or answer.reference, ids),
            tiers=self.hashes.tiers(transcript.boundaries, len(ids)),
        )

    def _leave_out(self, why: str) -> None:
        self.left_out[why] = self.left_out.get(why, 0) + 1
