"""The profile of a model for LangChain before it is loaded: one file is read, nothing fetched."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from langchain_core.language_models import ModelProfile

from llm_mlx_promptcache.cache.plain_files import read_plain
from llm_mlx_promptcache.config import DEFAULT_MODEL
from llm_mlx_promptcache.models.names import resolve
from llm_mlx_promptcache.models.references import divided, folder_of
from llm_mlx_promptcache.models.served import model_behind

_CONTEXT_KEYS = ("max_position_embeddings", "max_sequence_length", "seq_length", "n_positions")
_DEFAULT_CONTEXT = 8192
_LARGEST = 64 << 20  # bytes of a config


def profile_of(model: str, max_tokens: int | None) -> ModelProfile:
    """The capabilities that every model has here, and the context of one that is on this disk."""
    made: ModelProfile = {
        "text_inputs": True,
        "text_outputs": True,
        "image_inputs": False,
        "image_url_inputs": False,
        "image_tool_message": False,
        "pdf_inputs": False,
        "pdf_tool_message": False,
        "audio_inputs": False,
        "audio_outputs": False,
        "video_inputs": False,
        "tool_calling": True,
        "tool_choice": True,
        # A grammar holds the answer to a schema, beside tools too.
        "structured_output": True,
    }
    with suppress(ValueError):  # the first call says what is wrong with the name
        model = resolve(model).reference
    context = _context(model)
    if context is not None:
        made["max_input_tokens"] = context
    if (most := context if max_tokens is None else max_tokens) is not None:
        made["max_output_tokens"] = most
    return made


def _context(model: str) -> int | None:
    """Tokens that the model's context holds, if its folder is here and says so."""
    if model == DEFAULT_MODEL:
        return _DEFAULT_CONTEXT
    config = _config(model)
    inner = config.get("text_config")
    for place in (config, inner if isinstance(inner, dict) else {}):
        for key in _CONTEXT_KEYS:
            if isinstance(length := place.get(key), int) and length > 0:
                return length
    return None


def _config(model: str) -> dict[str, Any]:
    try:
        base, _ = divided(model_behind(model))
        folder = folder_of(base)
        file = _from_hub_cache(base) if folder is None else folder / "config.json"
        found = json.loads(read_plain(file, _LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _from_hub_cache(model: str) -> Path:
    """The file's path in the hub's cache; OSError if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json")
    if not isinstance(found, str):
        raise FileNotFoundError(model)
    return Path(found)
