"""A model's fingerprint: what must be equal before one process may use another's rows.

Content only: no path, alias, clock, or size that depends on free memory, so that a copied or
moved model still hits, and other weights under the same name never do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from .span_file import FORMAT

_CONTENT = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "merges.txt")
_BLOCK = 8 << 20


def fingerprint(
    folders: Iterable[Path], settings: Mapping[str, Any], known: MutableMapping[str, str]
) -> str:
    """A hex digest of all that the folders of a model and adapter hold, and of `settings`.

    `known` remembers the digests of large files by their inode and change time, for the caller
    to keep from process to process.
    """
    files = [
        [path.name, _file_digest(path, known)]
        for folder in folders
        for path in sorted({path for pattern in _CONTENT for path in folder.glob(pattern)})
    ]
    content = json.dumps([FORMAT, files, settings], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def namespace_of(identity: str, salt: str = "", settings: Sequence[int] | None = None) -> str:
    """The namespace of a model, an application's own salt, and settings of keys and values.

    Other salts never meet, nor do other settings.
    """
    if not salt and settings is None:
        return identity
    mixed = [identity, salt] if settings is None else [identity, salt, list(settings)]
    return hashlib.sha256(json.dumps(mixed).encode()).hexdigest()


def _file_digest(path: Path, known: MutableMapping[str, str]) -> str:
    status = path.stat()
    # The change time can't be set by a program, so a file that was rewritten is read again.
    key = f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_ctime_ns}"
    digest = known.get(key)
    if digest is None:
        hasher = xxhash.xxh3_128()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                hasher.update(block)
        digest = hasher.hexdigest()
    if status.st_size >= _BLOCK:
        known[key] = digest
    return digest
