"""The metadata in the header of a span's or a pack's file, checked before reading.

A pack holds several spans of one path, each hanging on the end of the one before: its tensors are
those of one span of all their tokens, and its header lists the ends of each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

import mlx.core as mx

from ..layers.layout import Layout
from ..layers.layout_text import layout_from_text, layout_to_text
from ..span import Head, StoredTensor
from ..trie import Tokens
from .coded_rows import ArrayBytes
from .file_ids import is_file_id
from .tensor_places import MOST_AXES

FORMAT: Final = "llm-mlx-promptcache/5"
PACK_FORMAT: Final = "llm-mlx-promptcache/pack/1"
CODED_FORMAT: Final = "llm-mlx-promptcache/pack/2"  # some of its arrays in fewer bytes
MOST_SPANS: Final = 1 << 12  # of one pack
BLOCK_BYTES: Final = 4 << 20  # of rows in a block of a coded array; even, so no number is cut
_FRAME: Final = 1 << 10  # bytes that a frame of zstd may take beyond its content, and more
MAX_HEADER: Final = 4 << 20
_MOST_WORD = 1 << 10  # characters of a name
_MOST_START = 1 << 31
_MOST_ABOUT = 32  # things that an exported file says it is of


class Member(NamedTuple):
    """One span of a pack: the part of its header that is its own."""

    file_id: str
    length: int  # in tokens
    tier: str
    resumes: bool


def metadata_of(
    head: Head, file_id: str, members: Sequence[Member] = (), coded: dict[str, Any] | None = None
) -> dict[str, str]:
    """A header's metadata for its span or pack, as safetensors wants it: strings."""
    said = {
        "format": PACK_FORMAT if members else FORMAT,
        "file_id": file_id,
        "namespace": head.namespace,
        "parent": head.parent,
        "start": str(head.start),
        "tier": head.tier,
        "layout": layout_to_text(head.layout),
        "resumes": str(int(head.resumes)),
        "label": head.label,
    }
    if members:
        said["spans"] = json.dumps(members)
    if coded:
        said |= {"format": CODED_FORMAT, "coded": json.dumps(coded)}
    return said


def metadata_about(about: Mapping[str, str]) -> dict[str, str]:
    """The additional metadata of an exported file: its settings."""
    return {"about": json.dumps(about)}


def about_from(metadata: dict[str, Any]) -> dict[str, str]:
    """The settings of an exported file; ValueError if its header has none."""
    found = json.loads(metadata["about"])
    if not isinstance(found, dict) or not 0 < len(found) <= _MOST_ABOUT:
        raise ValueError("it does not say what it is of")
    return {name: _word(found, name) for name in found if len(name) <= _MOST_WORD}


def layout_from_metadata(
    metadata: dict[str, Any], file_id: str, wanted: Sequence[str] = (FORMAT,)
) -> Layout:
    """The layers of a header of these formats and this file; ValueError for any other."""
    if metadata["format"] not in wanted:
        raise ValueError(f"format {metadata['format']!r:.50}, not {wanted[0]!r}")
    if metadata["file_id"] != file_id:
        raise ValueError("it was written under another name")
    return layout_from_text(metadata["layout"])


def head_from(metadata: dict[str, Any], layout: Layout, tokens: Tokens[int]) -> Head:
    """The head in a header's metadata; ValueError if it can't be right."""
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


def members_from(metadata: dict[str, Any], head: Head) -> list[Member]:
    """The spans of a pack with this head; ValueError if they do not match its content."""
    found = json.loads(metadata["spans"])
    if not isinstance(found, list) or not 0 < len(found) <= MOST_SPANS:
        raise ValueError("its spans are none")
    members = [_member(values) for values in found]
    if len({member.file_id for member in members}) != len(members):
        raise ValueError("it holds a span twice")
    if sum(member.length for member in members) != len(head.tokens):
        raise ValueError("its spans are not its tokens")
    return members


def decoded_entries(
    metadata: dict[str, Any], entries: list[list[StoredTensor | None]]
) -> tuple[list[list[StoredTensor | None]], list[ArrayBytes]]:
    """The tensors of a coded pack as they are unpacked, and as they are stored.

    ValueError if that can't be: each block has half of its unpacked size as it is.
    """
    told = json.loads(metadata["coded"])
    if not isinstance(told, dict):
        raise ValueError("it does not say how its arrays are coded")
    known: list[list[StoredTensor | None]] = [entries[0]]
    arrays: list[ArrayBytes] = []
    at = entries[0][0].end if entries[0][0] is not None else 0
    for layer, row in enumerate(entries[1:-1]):
        made: list[StoredTensor | None] = []
        for index, entry in enumerate(row):
            if entry is None:
                raise ValueError("a pack lacks an array")
            count = entry.end - entry.begin
            code = told.pop(f"layer.{layer}.{index}", None)
            array = ArrayBytes(count) if code is None else _coded(code, entry)
            dtype, shape = (entry.dtype, entry.shape) if code is None else _told_of(code)
            arrays.append(array)
            made.append(StoredTensor(dtype, shape, at, at + array.nbytes))
            at += array.nbytes
        known.append(made)
    if told:
        raise ValueError("it says of arrays that are not there how they are coded")
    return [*known, entries[-1]], arrays


def _told_of(code: Any) -> tuple[mx.Dtype, tuple[int, ...]]:
    return mx.bfloat16, tuple(code[0])


def _coded(code: Any, entry: StoredTensor) -> ArrayBytes:
    shape, blocks = code
    nbytes = 2
    for size in shape:
        if type(size) is not int or size <= 0:
            raise ValueError("a coded array has a size that is none")
        nbytes *= size
    wholes = range(0, nbytes, BLOCK_BYTES)
    halves = [min(BLOCK_BYTES, nbytes - at) // 2 for at in wholes[: len(blocks) + 1]]
    sound = entry.dtype == mx.uint8 and len(shape) <= MOST_AXES and len(blocks) == len(wholes)
    for size, half in zip(blocks, halves, strict=False):
        sound = sound and type(size) is int and half < size <= 2 * half + _FRAME
    if not sound or sum(blocks) != entry.end - entry.begin:
        raise ValueError("a coded array is not what its blocks come to")
    return ArrayBytes(nbytes, blocks)


def heads_of(head: Head, members: Sequence[Member]) -> dict[str, Head]:
    """The heads of a pack's spans by their file ids, in the order of the path."""
    heads: dict[str, Head] = {}
    parent, at = head.parent, 0
    for file_id, length, tier, resumes in members:
        heads[file_id] = head._replace(
            parent=parent,
            start=head.start + at,
            tier=tier,
            tokens=head.tokens[at : at + length],
            resumes=resumes,
        )
        parent, at = file_id, at + length
    return heads


def shares_of(size: int, lengths: Sequence[int]) -> list[int]:
    """Each span's share of a pack's bytes: in proportion to its tokens, in all its size."""
    whole, at = sum(lengths), 0
    bounds = [0]
    for length in lengths:
        at += length
        bounds.append(size * at // whole)
    return [last - first for first, last in pairwise(bounds)]


def _member(values: Any) -> Member:
    file_id, length, tier, resumes = values
    sound = is_file_id(file_id) and type(length) is int and length > 0 and type(resumes) is bool
    if not sound or not isinstance(tier, str) or len(tier) > _MOST_WORD:
        raise ValueError("one of its spans is none")
    return Member(file_id, length, tier, resumes)


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
