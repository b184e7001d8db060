"""A model's fingerprint: what must be equal before one process may use another's rows.

Content only: no path, alias, clock, or size that depends on free memory, so that a copied or
moved model still hits, and other weights under the same name never do.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from .span_file import FORMAT

_CONTENT = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "merges.txt")
_BLOCK = 8 << 20


def fingerprint(
    folders: Iterable[Path], settings: Mapping[str, Any], memo: Path | None = None
) -> str:
    """A hex digest of all that the folders of a model and adapter hold, and of `settings`.

    `memo` is a file that remembers digests of large files by their inode and change time.
    """
    known = _load_memo(memo)
    fresh: dict[str, str] = {}
    files = [
        [path.name, _file_digest(path, known, fresh)]
        for folder in folders
        for path in sorted({path for pattern in _CONTENT for path in folder.glob(pattern)})
    ]
    if memo is not None and not fresh.items() <= known.items():
        _save_memo(memo, known | fresh)
    content = json.dumps([FORMAT, files, settings], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def namespace_of(identity: str, salt: str = "") -> str:
    """The namespace of a model and an application's own salt; other salts never meet."""
    return hashlib.sha256(json.dumps([identity, salt]).encode()).hexdigest() if salt else identity


def _file_digest(path: Path, known: Mapping[str, str], fresh: dict[str, str]) -> str:
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
        fresh[key] = digest
    return digest


def _load_memo(memo: Path | None) -> dict[str, str]:
    if memo is None:
        return {}
    with suppress(OSError, ValueError):
        loaded = json.loads(memo.read_text())
        if isinstance(loaded, dict):
            return {str(key): str(value) for key, value in loaded.items()}
    return {}


def _save_memo(memo: Path, digests: Mapping[str, str]) -> None:
    """Replace the memo whole; where the folder can't be written, the next process reads again."""
    temporary = memo.with_name(f"{memo.name}.{os.getpid()}")
    with suppress(OSError):
        memo.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(dict(digests), file)
        temporary.replace(memo)
