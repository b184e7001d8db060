"""A model's tokenizer without its weights, for callers that only read stored or logged ids."""

from __future__ import annotations

from collections.abc import Sequence

from .chat_tokenizer import TemplateTokenizer
from .here import folder_here
from .loading import load_tokenizer


def tokenizer_of(reference: str) -> TemplateTokenizer | None:
    """The tokenizer of a model on this machine; None if it is not here, nothing is fetched.

    ModelLoadError if it is damaged.
    """
    folder = folder_here(reference) if reference else None
    return TemplateTokenizer(load_tokenizer(folder)) if folder is not None else None


class FirstWords:
    """The text of spans' first tokens; each model's tokenizer is loaded once, on first use."""

    def __init__(self) -> None:
        self._tokenizers: dict[str, TemplateTokenizer | None] = {}

    def of(self, model: str, tokens: Sequence[int]) -> str | None:
        """The text of these tokens; None if the model is not on this machine."""
        if model not in self._tokenizers:
            self._tokenizers[model] = tokenizer_of(model)
        tokenizer = self._tokenizers[model]
        return None if tokenizer is None else tokenizer.decode(tokens)
