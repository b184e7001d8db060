"""Two identities of a model: one for the meaning of its ids, one for sharing its rows.

Content only: no path, alias, clock, or size that depends on free memory, so that a copied or moved
model still hits, and other weights under the same name never do.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from .disk.span_header import FORMAT
from .manifest import FilesChanged, ListedFile, Manifest, Stamp

BLOCK = 8 << 20
# A file that no model is read from may be as large as it likes: its stamp tells it apart.
_LARGEST = 1 << 30
_DIGEST = re.compile(r"[0-9a-f]{32}", re.ASCII)


class Identity(NamedTuple):
    """`model` stands for weights, tokenizer and template, `rows` also for software and device."""

    model: str
    rows: str


def fingerprint(
    files: Manifest, known: MutableMapping[str, str], step: Callable[[], None] = lambda: None
) -> str:
    """A hex digest of the content of a model's and adapter's files: `Identity.model`.

    `known` maps stamps of large files to their digests, for the caller to keep from process to
    process. FilesChanged if a file is not the one that was listed. `step` is called before each
    `BLOCK` bytes are read.
    """
    folders: list[list[list[str]]] = [[] for _ in files.folders]
    for entry in files.plain():
        name = str(entry.path.relative_to(files.folders[entry.folder]))
        folders[entry.folder].append([name, _file_digest(entry, known, step)])
    return hashlib.sha256(json.dumps(folders).encode()).hexdigest()


def rows_identity(model: str, settings: Mapping[str, Any]) -> str:
    """`Identity.rows`: a model with all that decides how its rows are computed and kept."""
    content = json.dumps([FORMAT, model, settings], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def namespace_of(identity: str, cache_salt: str = "", settings: Sequence[int] | None = None) -> str:
    """The namespace of a model's rows, an application's own salt, and settings of keys and values.

    Different salts or settings never share rows.
    """
    if not cache_salt and settings is None:
        return identity
    mixed = [identity, cache_salt] if settings is None else [identity, cache_salt, list(settings)]
    return hashlib.sha256(json.dumps(mixed).encode()).hexdigest()


def _file_digest(
    entry: ListedFile, known: MutableMapping[str, str], step: Callable[[], None]
) -> str:
    stamp = entry.read
    assert stamp is not None
    key = f"{stamp.device}:{stamp.inode}:{stamp.size}:{stamp.changed}"
    weights = entry.path.suffix == ".safetensors"
    if stamp.size > _LARGEST and not (weights or entry.read_whole):
        return f"unread {key}"  # nobody waits for its end
    digest = known.get(key, "")
    if not _DIGEST.fullmatch(digest):
        digest = _digest(entry.path, stamp, step)
        if stamp.size >= BLOCK:
            known[key] = digest
    return digest


def _digest(path: Path, stamp: Stamp, step: Callable[[], None]) -> str:
    """The digest of a file that bears this stamp, before and after it was read."""
    # Never waits for a pipe's writer: the file may have been replaced since it was listed.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FilesChanged(f"{path} went") from None
    hasher = xxhash.xxh3_128()
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        unchanged = Stamp.of(os.fstat(descriptor)) == stamp
        left = stamp.size
        while unchanged and left and (block := file.read(min(BLOCK, left))):
            step()
            hasher.update(block)
            left -= len(block)
        if left or not unchanged or Stamp.of(os.fstat(descriptor)) != stamp:
            raise FilesChanged(f"{path} has changed")
    return hasher.hexdigest()
