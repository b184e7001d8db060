"""The text that two texts share at their ends, cut between marks and never inside one."""

from __future__ import annotations

_PAIRS = (("<", ">"), ("[", "]"))


def common_start(a: str, b: str) -> str:
    """The longest beginning of both."""
    size = min(len(a), len(b))
    different = (at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return a[: next(different, size)]


def common_end(a: str, b: str) -> str:
    """The longest end of both."""
    return common_start(a[::-1], b[::-1])[::-1]


def to_edge(text: str) -> str:
    """`text` without a mark that only begins in it."""
    for opener, closer in _PAIRS:
        at = text.rfind(opener)
        if at >= 0 and text.find(closer, at) < 0 and not text[at + 1 :].startswith(('"', "{")):
            return to_edge(text[:at])
    return text


def from_edge(text: str) -> str:
    """`text` without the end of a mark that began before it."""
    for opener, closer in _PAIRS:
        at = text.find(closer)
        if at >= 0 and opener not in text[:at] and not text[:at].strip("|\uff5c_\u2581/"):
            return from_edge(text[at + 1 :])
    return text
