"""A tokenizer's tokens by their text, looked up one at a time: only few are ever needed."""

from __future__ import annotations

from functools import cached_property
from typing import Any


class Vocabulary:
    """The texts that are tokens of a tokenizer, with their ids."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._look_up = getattr(backend, "token_to_id", None)

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and self.get(text) is not None

    def get(self, text: str) -> int | None:
        """The id of the token `text`; None if there is none."""
        if self._look_up is None:
            return self._all.get(text)
        token: int | None = self._look_up(text)
        return token

    @cached_property
    def _all(self) -> dict[str, int]:
        return dict(self._tokenizer.get_vocab())
