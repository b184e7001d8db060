"""A model's tokenizer without its weights, for who only reads what is stored or logged."""

from __future__ import annotations

from .chat_tokenizer import TemplateTokenizer
from .loading import kept_folder, load_tokenizer


def tokenizer_of(reference: str) -> TemplateTokenizer | None:
    """The tokenizer of a model that is on this machine; None where it is not, nothing is fetched.

    ModelLoadError where it is damaged.
    """
    folder = kept_folder(reference) if reference else None
    return TemplateTokenizer(load_tokenizer(folder)) if folder is not None else None
