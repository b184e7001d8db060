"""One span's file, written and read whole."""

import mlx.core as mx

from llm_mlx_promptcache.cache.disk.files import Files
from llm_mlx_promptcache.cache.disk.span_file import (
    OpenSpan,
    UnpublishedSpan,
    empty,
    host_tensors,
)


def write_span(folder, head, pieces):
    """Write a span and publish it; its file."""
    with UnpublishedSpan(folder, head, *host_tensors(pieces), Files()) as span:
        span.publish()
    path = folder / f"{span.file_id}.safetensors"
    assert path.stat().st_size == span.size
    return path


def read_span(path):
    """A span's head and pieces, verified."""
    span = OpenSpan(path, Files())
    try:
        layers = len(span.head.layout)
        begin, end = span.extent(0, layers)
        (data,) = empty([end - begin])
        span.read_into([memoryview(data)[: end - begin]])
        span.verify()
        pieces = span.pieces(0, layers, data)
        mx.eval([a for piece in pieces for a in piece or () if a is not None])
        return span.head, pieces
    finally:
        span.close()
