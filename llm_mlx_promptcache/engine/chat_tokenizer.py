"""mlx-lm's tokenizer as the chat room wants it: templates to text, text to ids and places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class TemplateTokenizer:
    """Implements `chat.transcript.ChatTokenizer` over mlx-lm's `TokenizerWrapper`."""

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper
        self._inner = wrapper._tokenizer  # the wrapper hides the offsets that encode needs
        self.stop_ids: frozenset[int] = frozenset(wrapper.eos_token_ids)

    def apply(
        self, messages: list[dict[str, Any]], *, add_generation_prompt: bool, **arguments: Any
    ) -> str:
        """The template's text; ValueError where the model has no chat template."""
        if not self._wrapper.has_chat_template:
            raise ValueError("the model has no chat template; use one made for chat (instruct)")
        rendered = self._wrapper.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, **arguments
        )
        return str(rendered)

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Ids of `text` as it stands, and where each one's characters end."""
        if not self._inner.is_fast:
            ids = self._inner.encode(text, add_special_tokens=False)
            # Without offsets no place inside is known, so the text has no boundary inside.
            return list(ids), [len(text)] * len(ids)
        encoded = self._inner(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoded["input_ids"]), [end for _, end in encoded["offset_mapping"]]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens included."""
        text = self._inner.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(text)
