"""Checks whether a model can work here, as far as possible before its weights are loaded."""

from __future__ import annotations

import json
import struct
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import Any

from ..cache.sizes import format_size
from .errors import ModelLoadError, one_line, shortened
from .here import folder_here
from .hub import HubListing, NotOnHub, listing
from .loading import check_files, load_tokenizer, no_template, read_config
from .memory import budget, weights_of

_LARGEST_HEADER = 100 << 20  # bytes, as safetensors itself allows
_POINTER = b"version https://git-lfs"
_OTHER_WEIGHTS = ("pytorch_model*.bin", "*.pth", "*.pt", "*.npz", "*.onnx", "*.h5")
_NEEDS = "a model's folder has config.json, model*.safetensors and tokenizer.json"


def check_folder(folder: Path) -> list[str]:
    """Warnings for the user about a model in a folder; ModelLoadError if it can't work."""
    if not (folder / "config.json").exists():
        raise ModelLoadError(f"{_called(folder)} holds no model: {_instead(folder)}")
    if not next(folder.glob("model*.safetensors"), None) and (other := _other_weights(folder)):
        raise ModelLoadError(
            f"{_called(folder)} has its weights in {other}, and mlx-lm reads model*.safetensors;"
            " take the model as safetensors, or its conversion from mlx-community"
        )
    check_files(folder)
    config = read_config(folder)
    _check_kind(folder, config)
    for path in sorted(folder.glob("model*.safetensors")):
        _check_whole(path)
    # Ask its own class: some have a template in no file.
    if not load_tokenizer(folder).has_chat_template:
        raise no_template(folder)
    packed = "quantization" in config or "quantization_config" in config
    return _too_large(str(folder), weights_of(folder), packed=packed)


def check_hub(reference: str) -> list[str]:
    """Warnings about a hub's model, from files that are here or from the hub's list of them.

    Nothing is fetched. If the hub can't be asked, the warning says so.
    """
    if (folder := folder_here(reference)) is not None:
        return check_folder(folder)
    try:
        found = listing(reference)
    except NotOnHub as error:
        raise ModelLoadError(
            f"there is no folder {reference!r} here, and the hub has no model of that name for you"
            f" ({one_line(error)}); check the name, or log in (hf auth login)"
        ) from error
    except OSError as error:
        return [f"the hub can't be asked about {reference} now, so it is not checked: {error}"]
    _check_listed(reference, found)
    told = _too_large(reference, found.weights, packed=found.packed)
    if not found.has_template:
        told.append(
            f"{reference} seems to have no chat template: a base model answers no prompts; take the"
            " one made for chat (its name often ends in -Instruct, -it or -chat)"
        )
    return told


def _check_listed(reference: str, found: HubListing) -> None:
    files = found.files
    if any(_is_weights(name) for name in files):
        if "config.json" not in files:
            raise ModelLoadError(f"{reference} has no config.json on the hub, so it is no model")
        return
    if packed := sorted(name for name in files if name.endswith(".gguf")):
        raise ModelLoadError(
            f"{reference} has GGUF files and nothing that mlx-lm reads; take the model that they"
            f" were made from, or fetch one (hf download {reference} {quote(packed[0])}) and give"
            " that file"
        )
    raise ModelLoadError(f"{reference} has no model*.safetensors on the hub, which mlx-lm reads")


def _is_weights(name: str) -> bool:
    return name.startswith("model") and name.endswith(".safetensors") and "/" not in name


def _check_kind(folder: Path, config: dict[str, Any]) -> None:
    """ModelLoadError if mlx-lm has no such kind of model, or it comes with code of its own."""
    from mlx_lm.utils import _get_classes

    if config.get("model_file") is not None:
        raise ModelLoadError(
            f"{_called(folder)} comes with code of its own (model_file), which is never run"
        )
    try:
        _get_classes(config)
    except Exception as error:
        kind = shortened(str(config["model_type"]), 60)
        raise ModelLoadError(
            f"{_called(folder)} is of the kind {kind!r}, which mlx-lm {version('mlx-lm')} does not"
            " know; a newer one may (llm install -U mlx-lm)"
        ) from error


def _check_whole(path: Path) -> None:
    """ModelLoadError if a file of weights is cut, or is only a pointer to one."""
    what = f"{shortened(path.name)} in {_called(path.parent)}"
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(_POINTER))
        if start == _POINTER:
            raise ModelLoadError(
                f"{what} is git's pointer to a file that was not fetched; run git lfs pull there"
            )
        # https://huggingface.co/docs/safetensors: 8 bytes, then so many of JSON, then the data.
        length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else -1
        if not 0 < length <= min(size - 8, _LARGEST_HEADER):
            raise ModelLoadError(f"{what} is no whole file of weights; fetch it again")
        file.seek(8)
        end = _end_of(file.read(length))
    if end != size - 8 - length:
        raise ModelLoadError(
            f"{what} has {size} bytes and should have {end + 8 + length}; fetch it again"
        )


def _end_of(header: bytes) -> int:
    """The end of the last tensor, as a header says; -1 if its entries can't be used."""
    try:
        tensors: Any = json.loads(header)
        ends = [one["data_offsets"][1] for name, one in tensors.items() if name != "__metadata__"]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return -1
    return max(ends, default=0) if all(isinstance(end, int) for end in ends) else -1


def _instead(folder: Path) -> str:
    """The content of a folder without a config, and what to give in its place."""
    inside = sorted(islice(folder.iterdir(), 1000))
    files = [path.name for path in inside if path.suffix == ".gguf"]
    if files:
        whole = quote(str(folder / files[0]))
        return f"it has GGUF files, one of which can be added: llm mlx-cached add {whole}"
    snapshots = folder / "snapshots"
    name = folder.name.split("--")
    if snapshots.is_dir() and name[0] == "models" and len(name) == 3:
        return f"it is the hub's cache; llm mlx-cached add {name[1]}/{name[2]}"
    inner = [path for path in inside if (path / "config.json").is_file()]
    if inner:
        return f"there is one in it: llm mlx-cached add {quote(str(inner[0]))}"
    return f"it has no config.json; {_NEEDS}"


def _other_weights(folder: Path) -> str:
    found = (next(folder.glob(pattern), None) for pattern in _OTHER_WEIGHTS)
    others = next((path for path in found if path is not None), None)
    others = others or next(folder.glob("*.safetensors"), None)
    return shortened(others.name) if others is not None else ""


def _too_large(model: str, size: int, *, packed: bool) -> list[str]:
    """A warning if a model takes more memory than there is for it, with a way to shrink it."""
    limit = budget()
    if size <= limit:
        return []
    told = f"{model} takes {format_size(size)}, and models may take {format_size(limit)} here"
    if packed:
        return [f"{told}; take a smaller one"]
    # Of 16 bits a weight these make 4, and one of scales for each 32 or 64 of them.
    small = "" if size * 0.3 <= limit else ", which is too large still"
    path = quote(f"{Path(model).name}-4bit")
    command = f"mlx_lm.convert --hf-path {quote(model)} --mlx-path {path} -q"
    return [f"{told}; {command} makes one of {format_size(int(size * 0.3))}{small}"]


def _called(folder: Path) -> str:
    return shortened(str(folder))
