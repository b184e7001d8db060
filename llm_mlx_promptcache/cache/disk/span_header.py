"""The header of a span's file: which tensors lie where, checked before any of them is read."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import mlx.core as mx

from ..layers.layout import Layout
from ..layers.layout_text import layout_from_text, layout_to_text
from ..span import Head, StoredTensor
from ..trie import Tokens
from .span_bytes import DIGEST_BYTES

FORMAT: Final = "llm-mlx-promptcache/4"
MAX_HEADER: Final = 4 << 20
_MOST_AXES = 8
_MOST_WORD = 1 << 10  # characters of a name
_MOST_START = 1 << 31
# safetensors' names; the letter is the memoryview format of the same width that carries the bits.
DTYPES: dict[mx.Dtype, tuple[str, str]] = {
    mx.float32: ("F32", "I"),
    mx.float16: ("F16", "H"),
    mx.bfloat16: ("BF16", "H"),
    mx.uint64: ("U64", "Q"),
    mx.int64: ("I64", "Q"),
    mx.uint32: ("U32", "I"),
    mx.int32: ("I32", "I"),
    mx.uint16: ("U16", "H"),
    mx.int16: ("I16", "H"),
    mx.uint8: ("U8", "B"),
    mx.int8: ("I8", "B"),
    mx.bool_: ("BOOL", "B"),
}
BY_NAME = {name: dtype for dtype, (name, _) in DTYPES.items()}
UNSIGNED = {"Q": mx.uint64, "I": mx.uint32, "H": mx.uint16, "B": mx.uint8}


def entries_of(
    header: dict[str, Any], layout: Layout, room: int
) -> list[list[StoredTensor | None]]:
    """The tensors of a file's data, tokens first, then layer by layer, then the digest.

    They lie as safetensors wants them: no hole, no overlap, all of the file.
    """
    found: list[list[StoredTensor | None]] = []
    at = known = 0
    for names in _names(layout):
        row: list[StoredTensor | None] = []
        for name in names:
            entry = header.get(name)
            if entry is None:
                row.append(None)
                continue
            made = _entry(name, entry, at)
            row.append(made)
            at, known = made.end, known + 1
        found.append(row)
    tokens, digest = found[0][0], found[-1][0]
    if tokens is None or tokens.dtype != mx.uint32 or digest is None:
        raise ValueError("its tokens or its digest are missing")
    if at != room or known != len(header) or digest.end - digest.begin != DIGEST_BYTES:
        raise ValueError("its tensors are not its content")
    return found


def _entry(name: str, entry: dict[str, Any], at: int) -> StoredTensor:
    dtype, shape = BY_NAME[entry["dtype"]], tuple(entry["shape"])
    if len(shape) > _MOST_AXES:
        raise ValueError(f"{name} has {len(shape)} axes")
    begin, end = entry["data_offsets"]
    count = dtype.size
    for size in shape:
        if type(size) is not int or size < 0:
            raise ValueError(f"{name} has a size that is none")
        count *= size
    if type(begin) is not int or type(end) is not int or begin != at or end - begin != count:
        raise ValueError(f"{name} does not lie where it should")
    return StoredTensor(dtype, shape, begin, end)


@lru_cache(maxsize=16)
def _names(layout: Layout) -> list[list[str]]:
    layers = [[f"layer.{i}.{j}" for j in range(kind.arity)] for i, kind in enumerate(layout)]
    return [["tokens"], *layers, ["digest"]]


def metadata_of(head: Head, file_id: str) -> dict[str, str]:
    """What a header says of its span, as safetensors wants it: strings."""
    return {
        "format": FORMAT,
        "file_id": file_id,
        "namespace": head.namespace,
        "parent": head.parent,
        "start": str(head.start),
        "tier": head.tier,
        "layout": layout_to_text(head.layout),
        "resumes": str(int(head.resumes)),
        "label": head.label,
    }


def layout_from_metadata(metadata: dict[str, Any], file_id: str) -> Layout:
    """The layers of a header of this format and this file; ValueError for any other."""
    if metadata["format"] != FORMAT:
        raise ValueError(f"format {metadata['format']!r:.50}, not {FORMAT!r}")
    if metadata["file_id"] != file_id:
        raise ValueError("it was written under another name")
    return layout_from_text(metadata["layout"])


def head_from(metadata: dict[str, Any], layout: Layout, tokens: Tokens[int]) -> Head:
    """What a header says; ValueError where it can't be."""
    return Head(
        namespace=_word(metadata, "namespace"),
        parent=_word(metadata, "parent"),
        start=_number(metadata["start"]),
        tier=_word(metadata, "tier"),
        layout=layout,
        tokens=tokens,
        resumes=metadata["resumes"] == "1",
        label=_word(metadata, "label"),
    )


def _word(metadata: dict[str, Any], name: str) -> str:
    value = metadata[name]
    if not isinstance(value, str) or len(value) > _MOST_WORD:
        raise ValueError(f"its {name} is none")
    return value


def _number(value: Any) -> int:
    if not isinstance(value, str) or not value.isascii() or not value.isdigit():
        raise ValueError("its start is no number")
    if len(value) > 10 or int(value) > _MOST_START:
        raise ValueError("its start is beyond any path")
    return int(value)
