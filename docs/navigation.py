"""The site's navigation: every existing page, in the order of mkdocs.yml's `sections`."""

from __future__ import annotations

import tomllib
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

REST = "More"
# What the theme's script looks for, to ask GitHub for stars and forks each time a page is read.
_ASKS_GITHUB = ' data-md-component="source"'
Entry = dict[str, str] | str


def on_config(config: Any) -> Any:
    """MkDocs' hook: name the pages before it looks for them, and where they are published."""
    project = tomllib.loads((Path(config.docs_dir).parent / "pyproject.toml").read_text("utf-8"))
    urls = project["project"]["urls"]
    config.site_url, config.repo_url = urls["Documentation"], urls["Repository"]
    # MkDocs has made a name for the header from what the file says, which is nothing.
    config.repo_name = urlsplit(config.repo_url).hostname
    config.nav = navigation(Path(config.docs_dir), config.extra["sections"])
    return config


def on_post_page(output: str, page: Any, config: Any) -> str:
    """MkDocs' hook: name the picture that other sites show of a link, and ask nothing of others."""
    card = f'<meta property="og:image" content="{config.site_url}card.png">'
    title = f'<meta property="og:title" content="{escape(page.title or config.site_name)}">'
    return output.replace(_ASKS_GITHUB, "").replace("</head>", f"{title}{card}</head>", 1)


def navigation(folder: Path, sections: dict[str, dict[str, str]]) -> list[dict[str, list[Entry]]]:
    """The pages of `folder` by section, titled; those that no section names come last."""
    pages = {page.stem for page in folder.glob("*.md")}
    named = {name for titles in sections.values() for name in titles}
    ordered: dict[str, list[Entry]] = {
        section: [{title: f"{name}.md"} for name, title in titles.items() if name in pages]
        for section, titles in sections.items()
    }
    ordered[REST] = [f"{name}.md" for name in sorted(pages - named)]
    return [{section: entries} for section, entries in ordered.items() if entries]
