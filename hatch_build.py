"""The page that a package index shows: the README, with links that lead somewhere from there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_COG = re.compile(r"<!-- \[\[\[cog.*?\]\]\] -->\n|<!-- \[\[\[end\]\]\] -->\n", re.DOTALL)
_LINK = re.compile(r"(!?)(\[[^\]]*\])\((?!https?:)([^)\s]+)\)")


class ReadmeHook(MetadataHookInterface):
    """Sets the project's `readme`; the version's tag in the repository is what links lead to."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the README to a project's metadata."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository = metadata["urls"]["Repository"]
        page = absolute(text, repository, f"v{metadata['version']}")
        metadata["readme"] = {"content-type": "text/markdown", "text": page}


def absolute(text: str, repository: str, tag: str) -> str:
    """`text` of a Markdown page at the repository's root, as read elsewhere."""

    def link(found: re.Match[str]) -> str:
        picture, label, target = found.groups()
        if target.startswith("#"):
            return f"{label}({repository}/blob/{tag}/README.md{target})"
        return f"{picture}{label}({repository}/{'raw' if picture else 'blob'}/{tag}/{target})"

    return _LINK.sub(link, _COG.sub("", text))
