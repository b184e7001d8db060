"""Paths whose files have ends (states, windows) behind their rows, and those files."""

import json

from played_layers import layers_of, play, same

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.prompt_cache import PromptCache

TURN = 20  # tokens


def ids_of(turns):
    """The path of so many turns."""
    return [(number * 31) % 97 for number in range(turns * TURN)]


def conversation(folder, family, turns):
    """A file for each turn; the path."""
    cache, layers, ids = PromptCache("1GB", DiskStore(folder)), layers_of(family), ids_of(turns)
    for end in range(TURN, len(ids) + 1, TURN):
        play(layers, ids[end - TURN : end])
        cache.insert("m", ids[:end], layers)
    cache.flush()
    return ids


def files_of(folder):
    """The files of a path, in its order."""
    return sorted((folder / "spans").iterdir(), key=lambda path: int(metadata_of(path)["start"]))


def header_of(path):
    """The header of a file."""
    with path.open("rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little")))


def metadata_of(path):
    """The metadata in it."""
    return header_of(path)["__metadata__"]


def without_ends(path):
    """The bytes of a file up to where its ends begin."""
    header = header_of(path)
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little") + header["digest"]["data_offsets"][1]


def fetched(store, ids, family):
    """The tokens that a fresh cache finds of a path; an error if they are wrong."""
    lease = PromptCache("1GB", store).fetch("m", [*ids, 5])
    held = play(layers_of(family), ids[: lease.cached]) if lease.cached else None
    assert lease.layers is None or same(lease.layers, held)
    return lease.cached


def flip(path, at):
    """Change a byte of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))
