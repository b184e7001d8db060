"""Images, sound and documents in messages: how they are recognised, and words in their place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

ToolMedia = Literal["refuse", "placeholder"]

# The model's word for each kind of block.
_KINDS = {
    **dict.fromkeys(["image", "image_url", "input_image", "image_generation_call"], "image"),
    **dict.fromkeys(["audio", "input_audio", "audio_url"], "audio"),
    **dict.fromkeys(["video", "video_url"], "video"),
    **dict.fromkeys(["file", "input_file", "document", "media"], "file"),
}
# Keys for the type of the bytes, in a block or one level further in.
_TYPE_KEYS = ("mime_type", "media_type", "mimeType")
_INNER = ("source", "image_url", "file", "input_audio")
_MIME = re.compile(r"[a-z]+/[a-z0-9][a-z0-9.+-]{0,60}")
_DATA = re.compile(r"data:([^;,]{1,70})[;,]")


def is_media(kind: str) -> bool:
    """True if a block of this type says something, but not in words."""
    return kind in _KINDS


def placeholder(kind: str, block: Mapping[str, Any]) -> str:
    """A line that tells the model what was there; the same for one kind, whatever its bytes."""
    mime = next(filter(_MIME.fullmatch, _types(block)), "")
    return f"[{_KINDS[kind]}{f' ({mime})' if mime else ''}: not shown, this model reads text]"


def _types(block: Mapping[str, Any]) -> Iterator[str]:
    inner = [block.get(key) for key in _INNER]
    for one in (block, *(part for part in inner if isinstance(part, Mapping))):
        yield from (one[key] for key in _TYPE_KEYS if isinstance(one.get(key), str))
        urls = (one.get(key) for key in ("url", "file_data", "image_url"))
        # The head of a data URL alone: the whole may be megabytes.
        heads = (_DATA.match(url, 0, 100) for url in urls if isinstance(url, str))
        yield from (found[1] for found in heads if found is not None)
