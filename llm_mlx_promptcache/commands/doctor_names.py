"""Text of `doctor` as it may be shown to everybody: no path of the user's is in it.

Where a path ends can't always be told, since folders' names have spaces. Whatever may be part of
one is left out, so a reader may miss a word behind it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..config import HOME_VARIABLE
from ..models.references import folder_of

_BEFORE: Final = r"(?<![\w~$./…{}-])"
_WORD: Final = r"""[^\s'"():;,\0]+"""
_SYSTEM: Final = re.compile(
    rf"{_BEFORE}/(?:usr/(?:local/)?(?:bin|lib|lib64)|bin|lib|proc|dev|System/Library)/{_WORD}"
)
_URL: Final = re.compile(r"""\b[a-z][a-z+.-]*://[^\s'"]+""", re.IGNORECASE)
_PUBLIC_URL: Final = re.compile(r"https://(?:huggingface\.co|github\.com)(?:/|$)")
# A path that is not quoted: its start, and all up to punctuation that ends a phrase. No phrase ends
# where the next word has a slash inside: "/Users/Doe, Jane/x".
_START: Final = r"""(?:~[^\s/'"]*/|\$\{?\w+\}?/|\.{1,2}/|/)"""
_GOES_ON: Final = r"\s\w[^\s/]*/"
_END: Final = (
    rf"""[:;,](?=\s|$)(?!{_GOES_ON})|\s[(\[](?![^)\]]*[)\]]\S*/)|[)\]](?=[\s.,;:]|$)"""
    rf"""|["'`](?=[\s.,;:?!)\]]|$)(?!{_GOES_ON})|[\0\n]"""
)
_PATH: Final = re.compile(rf"{_BEFORE}{_START}(?=\S)(?:(?!{_END}).)+")
# What our lines say of a path: where no slash follows, that is no part of it.
_SAID: Final = re.compile(
    r".*(\s(?:is|isn't|are|was|can't|has|holds|belongs|does|doesn't)\s[^/]*)$"
)
_RELATIVE: Final = re.compile(r"""[^\s'"`()\[\],;:\0…/]+/[^\s'"`()\[\],;:\0…]*""")
_HUB_ID: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_FILE: Final = re.compile(r"\.(?:gguf|jsonl?|safetensors|jinja|sqlite|txt|py|log)$", re.IGNORECASE)
_NUMBERS: Final = re.compile(r"[\d./]+")
_NO_PATHS: Final = ("docs/", "and/or", "tokens/s")
_OPENING: Final = re.compile(r"""(?:(?<=[\s(\[=:,])|^)(["'`])""")
_CLOSES: Final = r"(?=[\s.,;:?!)\]]|$)"


class Names:
    """Names of folders that may be told: ours mean the same to everybody."""

    def __init__(self, named: Iterable[tuple[str | Path, str]]) -> None:
        """`named`: paths, and what to call each; what lies in them keeps its name behind it."""
        spellings = {
            spelling: name
            for path, name in named
            for spelling in (str(path), str(folder_of(str(path)) or os.path.realpath(path)))
            if spelling.strip("/.~")
        }
        longest = sorted(spellings.items(), key=lambda item: -len(item[0]))
        self._named = [
            (re.compile(rf"{_BEFORE}{re.escape(path)}((?:/{_WORD})?)(?![\w-]|{_GOES_ON})"), name)
            for path, name in longest
        ]
        home = _home()
        self._homes = {str(home), os.path.realpath(home)} - {"/"} if home is not None else set()

    def public(self, text: str) -> str:
        """A text in which folders have these names, and what is left of paths has none."""
        kept: list[str] = []

        def keep(said: str) -> str:
            kept.append(said)
            return f"\0{len(kept) - 1}\0"

        text = text.replace("\0", "")
        for path, name in self._named:
            text = path.sub(lambda match, name=name: keep(name + match[1]), text)  # type: ignore[misc]
        for home in sorted(self._homes, key=len, reverse=True):
            text = re.sub(rf"{_BEFORE}{re.escape(home)}(?=/)", "~", text)
        text = _URL.sub(lambda match: keep(_public_url(match[0])), text)
        text = _quoted(text)
        text = _SYSTEM.sub(lambda match: keep(match[0]), text)
        text = _PATH.sub(lambda match: keep(_unnamed(match[0])), text)
        text = _RELATIVE.sub(self._relative, text)
        while "\0" in text:  # what was kept may stand in what was kept
            text = re.sub("\0(\\d+)\0", lambda match: kept[int(match[1])], text)
        return text

    def _relative(self, match: re.Match[str]) -> str:
        """A word with a slash in it: a model's id on the hub, or a path that begins here."""
        word = match[0]
        if word.startswith(_NO_PATHS) or _NUMBERS.fullmatch(word):
            return word
        owner = word.partition("/")[0].casefold()
        users = {Path(home).name.casefold() for home in self._homes}
        is_id = _HUB_ID.fullmatch(word.rstrip(".")) is not None and not _FILE.search(word)
        return word if is_id and owner not in users and not _is_here(word) else "…"


def folder_name(folder: Path) -> str:
    """The name of a folder of ours: by the variable that moves it, or from its owner's home."""
    moved = os.environ.get(HOME_VARIABLE)
    if moved:
        return f"${HOME_VARIABLE}/{folder.name}"
    home = _home()
    if home is not None and folder.is_relative_to(home):
        return f"~/{folder.relative_to(home)}"
    return f"…/{folder.name}"


def _home() -> Path | None:
    """The user's home; None for a user who has none, as in a container."""
    with suppress(RuntimeError):
        return Path.home()
    return None


def _unnamed(path: str) -> str:
    """A mark in place of a path, and what was said of it behind."""
    said = _SAID.match(path)
    return _mark(path) + (said[1] if said else path[len(path.rstrip()) :])


def _mark(path: str) -> str:
    return "~/…" if path.startswith("~") else "/…" if path.startswith("/") else "…"


def _quoted(text: str) -> str:
    """The text with a mark in place of each path in quotes, which ends where they do."""
    done, at = [], 0
    while (opening := _OPENING.search(text, at)) is not None:
        quote, start = opening[1], opening.end()
        ends = [found.end() - 1 for found in re.finditer(quote + _CLOSES, text[start:])]
        if not ends:
            break
        # More than are opened behind it: as many stand at the ends of words in a folder's name.
        opened = sum(found[1] == quote for found in _OPENING.finditer(text, start))
        end = start + ends[max(0, len(ends) - opened - 1)]
        inside = text[start:end]
        done.append(text[at:start] + (_mark(inside) if _is_path(inside) else inside) + quote)
        at = end + 1
    return "".join((*done, text[at:]))


def _is_path(inside: str) -> bool:
    """Tell whether a text in quotes is a path as a whole; parts of others are looked at later."""
    if "/" not in inside or inside.startswith("llm ") or "\0" in inside:
        return False
    return not _SYSTEM.fullmatch(inside) and not _HUB_ID.fullmatch(inside)


def _public_url(url: str) -> str:
    return url if _PUBLIC_URL.match(url) else f"{url.partition(':')[0]}://…"


def _is_here(path: str) -> bool:
    with suppress(OSError, ValueError):
        return os.path.lexists(path)
    return False
