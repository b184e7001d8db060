"""A model's tokenizer as mlx-lm wraps it, except for the text of its ids (`detokenizer.py`).

mlx-lm's own detokenizers read the whole vocabulary when they are made, and fail if it has holes.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlx_lm import tokenizer_utils
from mlx_lm.utils import _tokenizer_defaults
from transformers import AutoTokenizer

from .detokenizer import TextDecoder

# Without these, transformers asks on the terminal whether to run a model's own code.
_OWN_FILES_ONLY = {"trust_remote_code": False, "local_files_only": True}


class _StreamedText:
    """mlx-lm's interface of a detokenizer over ours, for generation with mlx-lm itself."""

    def __init__(self, tokenizer: Any) -> None:
        self._decoder = TextDecoder(tokenizer)
        self.reset()

    def reset(self) -> None:
        """Begin a new text."""
        self._detokenizer = self._decoder.detokenizer()
        self.tokens: list[int] = []
        self.text = ""
        self._shown = 0

    def add_token(self, token: int) -> None:
        """Take a token in."""
        self.tokens.append(token)
        self.text += self._detokenizer.add(token)

    def finalize(self) -> None:
        """End the text."""
        self.text += self._detokenizer.finish()

    @property
    def last_segment(self) -> str:
        """The text since the last call."""
        shown, self._shown = self._shown, len(self.text)
        return self.text[shown:]


def wrapped_tokenizer(folder: Path, ends: int | Iterable[int] | None = None) -> Any:
    """The tokenizer in a model's folder, with the marks that mlx-lm finds for its calls.

    `ends`: ids that end an answer. Raises whatever transformers raises for files it can't read.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, **_OWN_FILES_ONLY)
    settings = {**(_tokenizer_defaults(folder) or {}), **tokenizer.init_kwargs}
    options: dict[str, Any] = {}
    if named := settings.get("chat_template_type"):
        module = _module("chat_templates", named)
        # A template in the folder replaces the one built in for its kind of model.
        if "chat_template_type" in tokenizer.init_kwargs or tokenizer.chat_template is None:
            options["chat_template"] = module.apply_chat_template
        options["response_format"] = getattr(module, "RESPONSE_FORMAT", None)
    parser = settings.get("tool_parser_type") or tokenizer_utils._infer_tool_parser(tokenizer)
    if parser:
        module = _module("tool_parsers", parser)
        options["tool_parser"] = module.parse_tool_call
        options["tool_call_start"] = module.tool_call_start
        options["tool_call_end"] = module.tool_call_end
    ends = settings.get("eos_token_ids") if ends is None else ends
    ends = [ends] if isinstance(ends, int) else ends
    return tokenizer_utils.TokenizerWrapper(tokenizer, _StreamedText, eos_token_ids=ends, **options)


def _module(package: str, name: Any) -> Any:
    """A module of mlx-lm that a tokenizer's settings name; ValueError if there is none."""
    known = Path(tokenizer_utils.__file__).parent / package / f"{name}.py"
    if not (isinstance(name, str) and name.isidentifier() and known.is_file()):
        raise ValueError(
            f"tokenizer_config.json asks for mlx_lm.{package}.{name}, which does not exist"
        )
    return importlib.import_module(f"mlx_lm.{package}.{name}")
