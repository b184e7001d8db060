"""The hub's client: fetches a model, with progress of ours."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import snapshot_download
from tqdm import tqdm

from .errors import one_line
from .progress import Report

_STAGE = "Fetching {}"
_NOT_FOUND = 404
_PATIENCE = 10.0  # seconds for what a hub says of a model


def fetch(reference: str, patterns: Sequence[str], report: Report) -> Path:
    """Fetch a hub model's files; raises whatever the hub's client raises."""
    stage = _STAGE.format(reference.rpartition("/")[2])
    report(stage, 0, 0)
    bar = _bar_class(stage, report)
    return Path(snapshot_download(reference, allow_patterns=list(patterns), tqdm_class=bar))


class HubListing(NamedTuple):
    """The hub's description of a model: its files with their sizes in bytes, and its config."""

    files: dict[str, int]
    config: dict[str, Any]

    @property
    def weights(self) -> int:
        """Bytes of the weights."""
        return sum(size for name, size in self.files.items() if name.endswith(".safetensors"))

    @property
    def packed(self) -> bool:
        """True if its weights are quantised."""
        return bool(self.config.get("quantization_config") or self.config.get("quantization"))

    @property
    def has_template(self) -> bool:
        """True if it has a chat template, or if the hub does not tell."""
        told = self.config.get("tokenizer_config")
        if any(name.startswith("chat_template.") for name in self.files) or told is None:
            return True
        return not isinstance(told, dict) or bool(told.get("chat_template"))


class NotOnHub(ValueError):
    """The hub has no such model, or not for this user."""


def listing(reference: str) -> HubListing:
    """Ask the hub for a model's files and config; NotOnHub, and OSError if it can't be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        found = HfApi().model_info(reference, files_metadata=True, timeout=_PATIENCE)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise NotOnHub(first_line(error)) from error
    except Exception as error:
        # Its client for HTTP has errors of its own, which change from version to version.
        if getattr(getattr(error, "response", None), "status_code", None) == _NOT_FOUND:
            raise NotOnHub(first_line(error)) from error
        raise OSError(first_line(error)) from error
    files = {one.rfilename: one.size or 0 for one in found.siblings or []}
    return HubListing(files, found.config if isinstance(found.config, dict) else {})


def first_line(error: Exception) -> str:
    """The first sentence of the hub client's error, which can be a page long."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return one_line(lines[0] if lines else type(error).__name__, limit=120)


def _bar_class(stage: str, report: Report) -> Any:
    """A class of progress bars that report to us instead of drawing."""
    furthest = (0, 0)

    class Bar(tqdm):  # type: ignore[misc]
        """Draws nothing; reports bytes, and no files."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"file": io.StringIO(), "disable": False})

        def display(self, *arguments: Any, **options: Any) -> bool:
            nonlocal furthest
            # Bytes are counted by two bars, as they come and as they are written.
            done = (int(self.n), int(self.total or 0))
            if self.unit == "B" and done > furthest:
                furthest = done
                report(stage, *done)
            return True

    return Bar
