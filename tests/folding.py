"""Folders whose names are found in any case, as on most Macs: played where the disk has none."""

import os
import unicodedata
from pathlib import Path


def fold(monkeypatch, root):
    """Have the system's calls find what lies under a folder by names in any case or composition.

    Nothing is changed where its file system does so itself.
    """
    probe = root / "Probe"
    probe.mkdir()
    if (root / "pROBE").exists():
        return
    for name in ("stat", "lstat", "open", "listdir", "scandir", "mkdir"):
        monkeypatch.setattr(os, name, _folding(getattr(os, name), root, os.listdir))


def _folding(call, root, names):
    def folded(path, *arguments, **more):
        if isinstance(path, str | os.PathLike) and Path(path).is_relative_to(root):
            path = _stored(root, Path(path).relative_to(root).parts, names)
        return call(path, *arguments, **more)

    return folded


def _stored(folder, parts, names):
    """The path as its folders have it; names that are not there stay."""
    for part in parts:
        inside = names(folder) if os.path.lexists(folder) and os.access(folder, os.R_OK) else []
        folder /= (
            part if part in inside else next((n for n in inside if _key(n) == _key(part)), part)
        )
    return folder


def _key(name):
    return unicodedata.normalize("NFC", name.casefold())
