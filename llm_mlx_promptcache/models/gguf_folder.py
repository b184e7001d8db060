"""A user's GGUF file, converted once to a folder of our own."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

from ..cache.sizes import format_size
from ..config import HOME_VARIABLE, data_folder
from .default_model import native_variant
from .errors import ModelLoadError, one_line, shortened
from .gguf import check_convertible, convert
from .gguf_header import PACKINGS, GGUFHeader
from .memory import budget
from .own_folder import being_made
from .progress import Report, unreported

_WAITING = "Waiting for another process that is making a model"
_BLOCK = 1 << 22
_SLACK = 64 << 20  # bytes for tokenizer, config and the file system
_UNSAFE = re.compile(r"[^\w.-]+")


def converted_folder(file: Path, report: Report = unreported) -> Path:
    """The folder of a GGUF file converted for mlx-lm, made if it is not there.

    ModelLoadError, one line, if it can't be converted or stored, or is more than fits in memory.
    One file, whatever its name, is converted once.
    """
    variant = native_variant()
    try:
        header = check_convertible(file)
        needed = _needed(header, variant)
        if needed > budget():
            raise ValueError(
                f"{file.name} takes {format_size(needed)}, and models may take"
                f" {format_size(budget())} on this machine; use a smaller model"
            )
        folder = _place(file, variant, report)
        _make(file, folder, needed, report)
    except ValueError as error:
        raise ModelLoadError(_advised(str(error))) from error
    except OSError as error:
        raise ModelLoadError(
            f"{shortened(file.name)!r} can't be converted ({one_line(error)}); make room in"
            f" {data_folder()}, or set {HOME_VARIABLE} to another folder"
        ) from error
    return folder


def _advised(reason: str) -> str:
    return (
        f"{one_line(reason, 300)}; give the model that it was made from, a hub id or a folder with"
        " safetensors, or its conversion from mlx-community"
    )


def _place(file: Path, variant: str, report: Report) -> Path:
    """The folder of a file's conversion, named after the file's content."""
    digest, done, total = hashlib.blake2b(digest_size=8), 0, file.stat().st_size
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
            done += len(block)
            report(f"Reading {file.name}", done, total)
    folder, end = data_folder() / "models", f"{digest.hexdigest()}-{variant}"
    if known := sorted(folder.glob(f"*-{end}")):
        return known[0]  # whatever the file's name was then
    name = _UNSAFE.sub("-", file.stem)[:80].strip(".-") or "model"
    return folder / f"{name}-{end}"


def _make(file: Path, folder: Path, needed: int, report: Report) -> None:
    if folder.is_dir():
        return
    with being_made(folder, report, _WAITING) as work:
        if work is None:
            return
        free = shutil.disk_usage(work).free
        if needed + _SLACK > free:
            raise ValueError(
                f"{file.name} becomes {format_size(needed)}, and {folder.parent} has room for"
                f" {format_size(free)}; make room there"
            )
        report(f"Converting {file.name} (once)", 0, 0)
        convert(file, work / folder.name, quantized=folder.name.endswith("-q4"))


def _needed(header: GGUFHeader, variant: str) -> int:
    """Bytes of the converted weights."""
    if variant == "f32":
        return sum(4 * tensor.values for tensor in header.tensors)
    return sum(_packed(tensor.values, PACKINGS[tensor.kind].name) for tensor in header.tensors)


def _packed(values: int, name: str) -> int:
    # MLX keeps these packed; the others it reads as float16.
    bits = {"Q4_0": 5, "Q4_1": 5, "Q8_0": 9}.get(name, 16)
    return values * bits // 8
