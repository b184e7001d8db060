"""The tests' own helpers, so that benchmarks play the very conversations that the tests count."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_ROOMS = ("cache", "chat", "engine")


def helper(name: str) -> Any:
    """A module beside the tests; pytest finds them by `pythonpath` in pyproject.toml."""
    for folder in (str(ROOT / "tests" / room) for room in _ROOMS):
        if folder not in sys.path:
            sys.path.append(folder)
    return importlib.import_module(name)
