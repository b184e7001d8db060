"""Tokenizers and their views for grammars, made once in a process: each takes seconds to make.

Played models of one family, and families with one tokenizer, differ in their templates alone.
"""

import copy
import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

_tokenizers: dict[bytes, Any] = {}
_views: dict[tuple[bytes, int, tuple[int, ...]], Any] = {}


def digest_of(folder: Path) -> bytes:
    """A digest of the files on which a tokenizer depends; its chat template is not one of them."""
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.pop("chat_template", None)
    digest = blake2b((folder / "tokenizer.json").read_bytes())
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.digest()


def shared_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, for words and ids only: its template may be another folder's."""
    from transformers import AutoTokenizer

    digest = digest_of(folder)
    if digest not in _tokenizers:
        _tokenizers[digest] = AutoTokenizer.from_pretrained(str(folder))
    return _tokenizers[digest]


class _Shared:
    """Stands for AutoTokenizer: one that was read before, with the folder's own template."""

    @staticmethod
    def from_pretrained(folder: Path, **_: Any) -> Any:
        made = copy.copy(shared_tokenizer(folder))
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        own = folder / "chat_template.jinja"
        text = own.read_text(encoding="utf-8") if own.exists() else None
        made.chat_template = settings.get("chat_template", text)
        made.name_or_path = str(folder)
        return made


def share_views(patch: Any) -> None:
    """Have models of this process take tokenizers, and views of them, from those made before."""
    from llm_mlx_promptcache.engine import constraint
    from llm_mlx_promptcache.models import tokenizer

    patch.setattr(tokenizer, "AutoTokenizer", _Shared)
    make = constraint.grammar_tokenizer

    def shared(wrapper: Any, vocab_size: int) -> Any:
        folder = Path(wrapper._tokenizer.name_or_path)
        key = (digest_of(folder), vocab_size, tuple(sorted(wrapper.eos_token_ids)))
        if key not in _views:
            _views[key] = make(wrapper, vocab_size)
        return _views[key]

    patch.setattr(constraint, "grammar_tokenizer", shared)
