"""The header of a span's or a pack's file: its tensors and their places, checked before reading.

A pack holds several spans of one path, each hanging on the end of the one before: its tensors are
those of one span of all their tokens, and its header lists the ends of each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, NamedTuple

import mlx.core as mx

from ..layers.layout import Layout
from ..layers.layout_text import layout_from_text, layout_to_text
from ..span import Head, StoredTensor
from ..trie import Tokens
from .coded_rows import ArrayBytes
from .file_ids import is_file_id
from .span_bytes import DIGEST_BYTES

FORMAT: Final = "llm-mlx-promptcache/4"
PACK_FORMAT: Final = "llm-mlx-promptcache/pack/1"
CODED_FORMAT: Final = "llm-mlx-promptcache/pack/2"  # some of its arrays in fewer bytes
MOST_SPANS: Final = 1 << 12  # of one pack
BLOCK_BYTES: Final = 4 << 20  # of rows in a block of a coded array; even, so no number is cut
_FRAME: Final = 1 << 10  # bytes that a frame of zstd may take beyond its content, and more
MAX_HEADER: Final = 4 << 20
_MOST_AXES = 8
_MOST_WORD = 1 << 10  # characters of a name
_MOST_START = 1 << 31
_MOST_ABOUT = 32  # things that an exported file says it is of
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


class Member(NamedTuple):
    """One span of a pack: the part of its header that is its own."""

    file_id: str
    length: int  # in tokens
    tier: str
    resumes: bool


class TensorShape(NamedTuple):
    """A tensor as a header lists it: safetensors' name of its type, its shape and its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def header_of(metadata: dict[str, str], count: int, tensors: Sequence[TensorShape]) -> bytes:
    """The beginning of a file of `count` tokens and these tensors: its header behind its length."""
    header: dict[str, Any] = {"__metadata__": metadata}
    tokens = TensorShape("tokens", "U32", (count,), 4 * count)
    digest = TensorShape("digest", "U8", (DIGEST_BYTES,), DIGEST_BYTES)
    offset = 0
    for name, dtype, shape, nbytes in (tokens, *tensors, digest):
        end = offset + nbytes
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def entries_of(
    header: dict[str, Any], layout: Layout, room: int
) -> list[list[StoredTensor | None]]:
    """The tensors of a file's data, tokens first, then layer by layer, then the digest.

    They are placed as safetensors requires: no hole, no overlap, all of the file.
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
    sound = entry.dtype == mx.uint8 and len(shape) <= _MOST_AXES and len(blocks) == len(wholes)
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
