"""The hub's client: a model fetched with progress of ours, and what lies in the hub's cache."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import scan_cache_dir, snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import CacheNotFound
from tqdm import tqdm

from .progress import Report

_STAGE = "Fetching {}"
_MOST_NAMES = 10_000


class HubModel(NamedTuple):
    """A model in the hub's cache: its id and the folder of its newest revision there."""

    reference: str
    folder: Path


def fetch(reference: str, patterns: Sequence[str], report: Report) -> Path:
    """Fetch a hub model's files; raises whatever the hub's client does."""
    stage = _STAGE.format(reference.rpartition("/")[2])
    report(stage, 0, 0)
    bar = _bar_class(stage, report)
    return Path(snapshot_download(reference, allow_patterns=list(patterns), tqdm_class=bar))


def models_in_cache() -> list[HubModel]:
    """The language models that lie in the hub's cache, if there is one."""
    try:
        held = scan_cache_dir().repos
    except CacheNotFound:
        return []
    models = []
    for repo in held:
        revisions = sorted(repo.revisions, key=lambda r: r.last_modified, reverse=True)
        if repo.repo_type == "model" and revisions:
            folder = Path(revisions[0].snapshot_path)
            if (folder / "config.json").exists() and next(folder.glob("*.safetensors"), None):
                models.append(HubModel(repo.repo_id, folder))
    return sorted(models)


def names_in_cache() -> Iterator[str]:
    """The ids of whatever lies in the hub's cache as a model; of its folders' names alone."""
    with suppress(OSError):
        for folder in islice(Path(HF_HUB_CACHE).iterdir(), _MOST_NAMES):
            kind, *parts = folder.name.split("--")
            if kind == "models" and len(parts) == 2:
                yield "/".join(parts)


def _bar_class(stage: str, report: Report) -> Any:
    """A class of bars that report what the client would draw itself."""
    furthest = (0, 0)

    class Bar(tqdm):  # type: ignore[misc]
        """Draws nothing; bytes are told, and files are not."""

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
