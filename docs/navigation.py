"""The site's navigation: every page that is there, in the order of mkdocs.yml's `sections`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

REST = "More"


def on_config(config: Any) -> Any:
    """MkDocs' hook: name the pages before it looks for them."""
    config.nav = navigation(Path(config.docs_dir), config.extra["sections"])
    return config


def navigation(folder: Path, sections: dict[str, list[str]]) -> list[dict[str, list[str]]]:
    """The pages of `folder` by section; those that no section names come last."""
    pages = {page.stem for page in folder.glob("*.md")}
    named = {name for names in sections.values() for name in names}
    ordered = {title: [n for n in names if n in pages] for title, names in sections.items()}
    ordered[REST] = sorted(pages - named)
    return [{title: [f"{n}.md" for n in names]} for title, names in ordered.items() if names]
