"""A model by its reference: the embedded default, a folder, or a model hub's id.

All that is asked of mlx-lm, transformers and the hub to load one goes through this file.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm import __version__ as mlx_lm_version
from mlx_lm.utils import _download, load_model, load_tokenizer

from ..cache.layers import NotCached, layout_of, layout_to_json
from ..config import data_folder
from .decoding import make_layers
from .default_model import ensure_default_model
from .errors import ModelLoadError

DEFAULT = "default"

_CONTEXT_KEYS = (
    "max_position_embeddings",
    "max_sequence_length",
    "n_positions",
    "model_max_length",
)


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run; `context_length` is in tokens, None where its config has none."""

    model: nn.Module
    tokenizer: Any  # mlx-lm's TokenizerWrapper
    config: Mapping[str, Any]
    folder: Path
    context_length: int | None


def load(reference: str) -> LoadedModel:
    """Load "default", a folder, or a hub id; ModelLoadError, in one line, where that fails."""
    with _quiet():
        folder = _folder_of(reference)
        if not (folder / "config.json").is_file():
            raise ModelLoadError(f"{folder} has no config.json; it is not a model's folder")
        try:
            model, config = load_model(folder)
            # Weights are read when they are evaluated: a damaged file must show here.
            mx.eval(model.parameters())
        except Exception as error:
            raise ModelLoadError(_damaged(folder, "model", error)) from error
        try:
            tokenizer = load_tokenizer(folder, eos_token_ids=config.get("eos_token_id"))
        except Exception as error:
            raise ModelLoadError(_damaged(folder, "tokenizer", error)) from error
    return LoadedModel(model, tokenizer, config, folder, _context_length(config))


def describe(loaded: LoadedModel) -> dict[str, Any]:
    """What beside the files of a model must be equal for its rows to be."""
    try:
        layout: Any = layout_to_json(layout_of(make_layers(loaded.model)))
    except NotCached as reason:
        layout = str(reason)
    return {"mlx_lm": mlx_lm_version, "layers": layout}


def _folder_of(reference: str) -> Path:
    if reference == DEFAULT:
        return ensure_default_model(data_folder())
    path = Path(reference).expanduser()
    if path.is_dir():
        return path
    if path.exists() or reference.count("/") != 1 or reference.startswith((".", "/", "~")):
        raise ModelLoadError(
            f"no model {reference!r}: give a folder that holds one, a hub id such as"
            f' mlx-community/NAME, or "{DEFAULT}"'
        )
    try:
        return Path(_download(reference))
    except Exception as error:
        raise ModelLoadError(
            f"the model {reference!r} can't be had from the hub ({_first_line(error)});"
            " check its name and the network, or give a folder that holds a model"
        ) from error


def _damaged(folder: Path, what: str, error: Exception) -> str:
    return (
        f"the {what} in {folder} can't be loaded ({type(error).__name__}: {_first_line(error)});"
        " download or convert it again"
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def _context_length(config: Mapping[str, Any]) -> int | None:
    for part in (config, config.get("text_config") or {}):
        for key in _CONTEXT_KEYS:
            # Some configs say "no limit" by a number larger than any context.
            if isinstance(part.get(key), int) and 0 < part[key] < 1 << 30:
                return int(part[key])
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what libraries print and log while loading off the user's output."""
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
