"""Intake: requests of one model made ready to run, each with its answer's parser and constraint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..cache.identity import Identity
from ..chat.transcript import Transcript
from ..models.chat_tokenizer import TemplateTokenizer
from ..models.loading import LoadedModel
from .answers import AnswerStream
from .preparation import Prepared, limit_of, prepare, transcript_of
from .request import GenerationRequest
from .sequence import Reader, Sequence

if TYPE_CHECKING:
    from .constraint import Constraint, Matchers


class Intake:
    """The way from readers' requests to sequences of a loaded model."""

    def __init__(self, loaded: LoadedModel, identity: Identity) -> None:
        self._loaded = loaded
        self._identity = identity
        self.tokenizer = TemplateTokenizer(loaded.tokenizer)
        self._matchers: Matchers | None = None

    def sequence(self, reader: Reader) -> Sequence:
        """The request of `reader`, ready to wait; ValueError names its fault."""
        prepared = prepare(reader.request, self._loaded, self.tokenizer, self._identity)
        answer = AnswerStream(prepared, self.tokenizer)
        return Sequence(reader, prepared, answer, self._constraint(prepared))

    def transcript(self, request: GenerationRequest) -> Transcript:
        """The ids that a request would ask with; ValueError as `sequence`."""
        model = self._identity.model
        transcript = transcript_of(request, self._loaded, self.tokenizer, model)
        limit_of(request.max_tokens, self._loaded.context_length, len(transcript.ids))
        return transcript

    def _constraint(self, prepared: Prepared) -> Constraint | None:
        if prepared.grammar is None:
            return None
        from .constraint import Constraint, Matchers, grammar_tokenizer

        vocab_size = self._loaded.vocab_size
        if self._matchers is None:
            self._matchers = Matchers(grammar_tokenizer(self._loaded.tokenizer, vocab_size))
        return Constraint(self._matchers, prepared.grammar, vocab_size, thinking=prepared.thinking)
