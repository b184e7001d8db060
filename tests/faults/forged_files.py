"""Files of spans that somebody made: whole, with a digest that fits, and not what they say."""

import json

import xxhash
import zstandard


def forged(content, change, rows=lambda data: data):
    """A file with another header, by `change(metadata, header)`, or other rows."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header["__metadata__"], header)
    text = json.dumps(header).encode()
    start, data = len(text).to_bytes(8, "little") + text, rows(content[8 + length : -16])
    coded = header["__metadata__"].get("format", "").endswith("pack/2")
    return start + data + xxhash.xxh3_128_digest(data + start if coded else start + data)


def recoded(change):
    """A change of how a coded pack says that its arrays are coded: `change(told, header)`."""

    def made(metadata, header):
        told = json.loads(metadata["coded"])
        metadata["coded"] = json.dumps(change(told, header) or told)

    return made


def first_array(change):
    """That of its first array alone."""
    return recoded(lambda told, _: change(told["layer.0.0"]))


def framed(what, start, size):
    """A change of the rows: a bomb at `start`, in the place of a frame that holds so many bytes."""

    def change(data):
        frame = BOMBS[what](size)
        return data[:start] + frame + data[start + len(frame) :]

    return change


BOMBS = {
    "a frame of a terabyte": lambda size: b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little"),
    "a frame without a size": lambda size: zstandard.ZstdCompressor(
        write_content_size=False
    ).compress(bytes(size)),
    "a frame of more": lambda size: zstandard.ZstdCompressor().compress(bytes(1 << 26))[:1000],
    "no frame": lambda size: bytes(100),
}
