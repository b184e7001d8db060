"""A model from the hub, a folder, or the embedded default.

All use of the moving parts of mlx-lm, transformers and huggingface_hub for loading is here. Code
that comes with a model is never run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..cache.layers.layout import NotCached, layout_of, layout_to_json
from ..cache.manifest import Manifest
from ..config import DEFAULT_MODEL, data_folder
from .default_model import ensure_default_model
from .errors import ModelFetchError, ModelLoadError, one_line, shortened
from .facts import environment
from .here import hub_folder
from .kv_settings import KVSettings
from .layers import make_layers, vocab_size_of
from .model_files import damaged, missing_weights, read_json
from .progress import BetweenSteps, Report, unasked, unreported
from .quantisation import fitting
from .references import adapter_of, divided, folder_of, is_hub_id, served_name
from .served import model_behind, never_loaded_here

_HUB_FILES = ["*.json", "model*.safetensors", "tokenizer.model", "*.tiktoken", "*.txt", "*.jinja"]
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "*.tiktoken", "vocab.json", "vocab.txt")
_CONTEXT_KEYS = ("max_position_embeddings", "max_sequence_length", "seq_length", "n_positions")
# Of files that transformers and mlx-lm read whole; the largest known tokenizer has 35 MB.
_LARGEST_TEXT = 512 << 20
# Bytes of weights that are read at once.
PART = 64 << 20
# What takes its part of a model, in place.
Cut = Callable[[Any], None]
# Layers are built one by one before their weights are looked at; the deepest known have 126.
_MOST_LAYERS = 4096
# Tokenizers without a limit of their own say 10^30.
_LONGEST_CONTEXT = 1 << 30


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run; `context_length` in tokens, None if the model doesn't say.

    `adapter` is the folder of the adapter trained on top of it, if any. `files` are those that all
    of it was read from, listed before the first of them was opened.
    """

    model: Any
    tokenizer: Any
    config: dict[str, Any]
    folder: Path
    context_length: int | None
    adapter: Path | None = None
    files: Manifest | None = None

    @cached_property
    def vocab_size(self) -> int:
        """The number of columns of the model's logits, asked of it once."""
        return vocab_size_of(self.model)

    def fitting(self, kv: KVSettings) -> KVSettings:
        """The settings with a group size that goes with the model, asked of it once."""
        if kv not in self._fitted:
            self._fitted[kv] = fitting(self.model, kv)
        return self._fitted[kv]

    @cached_property
    def _fitted(self) -> dict[KVSettings, KVSettings]:
        return {}


class Weights(Enum):
    """The treatment of a model's weights when it is loaded."""

    READ = auto()
    LEFT = auto()  # for who asks for shapes, prompts and identities: an eval would read them


def load_model(
    reference: str,
    report: Report = unreported,
    step: BetweenSteps = unasked,
    weights: Weights = Weights.READ,
    cut: Cut | None = None,
) -> LoadedModel:
    """Load "default", a folder, or a hub id such as "mlx-community/Qwen3-0.6B-4bit".

    With "@FOLDER" behind it, an adapter that mlx-lm trained (LoRA, DoRA) goes on top.
    ModelLoadError, in one line, if there is no such model or it is damaged. `step` is called before
    each part of the work: at most `PART` bytes of weights, or one larger array.
    """
    _hush()
    if served_name(reference):
        raise ModelLoadError(never_loaded_here(reference))
    # Without links, so that one that is set elsewhere meanwhile changes nothing of what is read.
    folder, adapter = model_folder(reference, report).resolve(), adapter_of(reference)
    files = _listed(folder, adapter)
    check_files(folder)
    step()
    tokenizer = _load_tokenizer(folder)
    if not tokenizer.has_chat_template:
        raise no_template(folder)
    step()
    model, config = _load_weights(folder, step, weights, cut)
    if adapter is not None:
        model = _adapted(model, adapter, weights)
    context = _context_length(config, tokenizer)
    return LoadedModel(model, tokenizer, config, folder, context, adapter, files)


def model_folder(reference: str, report: Report = unreported) -> Path:
    """The folder of a model, fetched first if it is not here; ModelLoadError."""
    reference, _ = divided(model_behind(reference))
    if reference == DEFAULT_MODEL:
        return ensure_default_model(data_folder(), report=report)
    if (given := folder_of(reference)) is not None:
        return given
    if is_hub_id(reference):
        return _from_hub(reference, report)
    raise ModelLoadError(
        f"there is no model {shortened(reference)!r}: it is neither a local folder nor a hub id;"
        " llm mlx-cached models lists the local ones"
    )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a model's folder, without the model; ModelLoadError if it is damaged."""
    _hush()
    _listed(folder)
    return _load_tokenizer(folder)


def no_template(folder: Path) -> ModelLoadError:
    """The error for a base model, every prompt of which would be refused, with a remedy."""
    own = one_line(str(folder / "chat_template.jinja"))
    return ModelLoadError(
        f"the model in {folder} has no chat template: it is a base model, which continues text"
        " and does not answer; use its chat version (the name often ends in -Instruct, -it or"
        f" -chat), or put that one's template into {own}"
    )


def describe(loaded: LoadedModel) -> dict[str, Any]:
    """Everything besides the folder's files that decides a model's rows, for their identity.

    A CPU's rows differ from a GPU's, another mlx may mend a kernel, and another mlx-lm may run the
    same weights differently.
    """
    try:
        layout: Any = layout_to_json(layout_of(make_layers(loaded.model)))
    except NotCached as reason:
        layout = str(reason)
    return {"environment": environment(), "layers": layout}


def _hush() -> None:
    """Keep the libraries' remarks to developers out of the user's terminal; errors stay."""
    for name in ("transformers", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _from_hub(reference: str, report: Report) -> Path:
    """A hub model's folder: as it was fetched before, without asking the hub again, or fetched."""
    from .hub import fetch, first_line

    kept = hub_folder(reference)
    if kept is not None:
        return kept
    try:
        return fetch(reference, _HUB_FILES, report)
    except Exception as error:
        raise _fetch_error(error)(
            f"model {reference!r} can't be fetched from the hub ({first_line(error)}); check its"
            " name and your connection, or give the folder of a local model"
        ) from error


def _fetch_error(error: Exception) -> type[ModelLoadError]:
    """The error's class: the hub has no such model for this user, or can't be asked now."""
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    refused = (HFValidationError, RepositoryNotFoundError)
    return ModelLoadError if isinstance(error, refused) else ModelFetchError


def _listed(*folders: Path | None) -> Manifest:
    """The files that a model will be read from; ModelLoadError if one must not be opened."""
    given = [folder for folder in folders if folder is not None]
    try:
        files = Manifest.of(given)
    except OSError as error:
        raise damaged(given[0], f"its files can't be listed: {one_line(error)}") from error
    if (endless := files.endless()) is not None:
        raise damaged(
            endless.parent, f"{endless.name} is a pipe, a socket or a device, and no file"
        )
    for entry in files.plain():
        size = entry.read.size if entry.read is not None else 0
        if size > _LARGEST_TEXT and entry.read_whole:
            name, folder = entry.path.name, entry.path.parent
            raise damaged(folder, f"{name} has {size} bytes, more than {_LARGEST_TEXT}")
    return files


def check_files(folder: Path) -> None:
    """Check that the files every model needs are there and can be read; ModelLoadError."""
    config = read_config(folder)
    if not isinstance(config.get("model_type"), str):
        raise damaged(folder, "config.json has no model_type")
    if too_deep := _too_deep(config):
        raise damaged(folder, f"config.json asks for {too_deep}, more than {_MOST_LAYERS}")
    if missing := missing_weights(folder):
        raise damaged(folder, f"{missing} is missing")
    if not any(next(folder.glob(pattern), None) for pattern in _TOKENIZER_FILES):
        raise damaged(folder, "it has no tokenizer (tokenizer.json)")


def read_config(folder: Path) -> dict[str, Any]:
    """A model's config.json; ModelLoadError if it has none that can be read."""
    return read_json(folder, "config.json")


def _too_deep(config: dict[str, Any]) -> str:
    """The entry of a config, or of one inside it, that asks for endlessly many layers."""
    inner = [value for value in config.values() if isinstance(value, dict)]
    for part in (config, *inner):
        for key, value in part.items():
            if "layer" in key and isinstance(value, int | float) and value > _MOST_LAYERS:
                return one_line(f"{key} {value:g}", limit=80)
    return ""


def unread_model(folder: Path) -> tuple[Any, dict[str, Any]]:
    """A model none of whose weights is read yet, and its config; raises whatever comes first."""
    from mlx_lm.utils import load_model as load

    model, config = load(
        folder,
        lazy=True,
        strict=True,
        model_config=_without_nulls(folder),
        trust_remote_code=False,
    )
    return model, config


def _load_weights(
    folder: Path, step: BetweenSteps, weights: Weights, cut: Cut | None
) -> tuple[Any, dict[str, Any]]:
    try:
        model, config = unread_model(folder)
        if cut is not None:
            cut(model)
        if weights is Weights.LEFT:
            return model, config
        # What is wrong with a file must show here, and not in the middle of an answer.
        for part in _parts(model.parameters(), PART if cut is None else 0):
            mx.eval(part)
            step()
        mx.eval(model.state)
    except ModelLoadError:
        raise
    except Exception as error:
        # mlx-lm and MLX raise whatever comes first: KeyError, TypeError, RuntimeError, ...
        raise damaged(folder, f"its weights can't be loaded: {_reason(error)}") from error
    return model, config


def _parts(parameters: dict[str, Any], most: int) -> Iterator[list[mx.array]]:
    """The arrays of a model in parts, so small that a caller who leaves does not wait long."""
    part: list[mx.array] = []
    for _, array in tree_flatten(parameters):
        if part and sum(one.nbytes for one in part) + array.nbytes > most:
            yield part
            part = []
        part.append(array)
    yield part


def _without_nulls(folder: Path) -> dict[str, Any]:
    """Empty tables for entries of the config that are null where mlx-lm wants a table."""
    given = read_json(folder, "config.json")
    return {key: {} for key in ("text_config",) if key in given and given[key] is None}


def _adapted(model: Any, adapter: Path, weights: Weights) -> Any:
    try:
        from mlx_lm.tuner.utils import load_adapters

        model = load_adapters(model, str(adapter))
        model.eval()  # no dropout
        if weights is Weights.READ:
            mx.eval(model.state)
    except Exception as error:
        raise damaged(
            adapter, f"this adapter can't be put on the model: {_reason(error)}"
        ) from error
    return model


def _load_tokenizer(folder: Path) -> Any:
    read_config(folder)
    try:
        from mlx_lm.utils import load_config

        from .tokenizer import wrapped_tokenizer

        # Includes the ends of answers that generation_config.json names.
        return wrapped_tokenizer(folder, load_config(folder).get("eos_token_id"))
    except Exception as error:
        raise damaged(folder, f"its tokenizer can't be loaded: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    # The text of a KeyError is the key alone.
    text = one_line(error)
    return f"{type(error).__name__} {text}" if isinstance(error, KeyError) else text


def _context_length(config: dict[str, Any], tokenizer: Any) -> int | None:
    """The tokens that the model's context holds: from its config, else from its tokenizer."""
    inner = config.get("text_config")
    configs = [config, inner if isinstance(inner, dict) else {}]
    lengths = [each.get(key) for each in configs for key in _CONTEXT_KEYS]
    for length in [*lengths, getattr(tokenizer, "model_max_length", None)]:
        if isinstance(length, int | float) and 0 < length < _LONGEST_CONTEXT:
            return int(length)
    return None
