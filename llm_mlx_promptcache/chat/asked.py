"""An answer's prompt, as digests: with them a later prompt tells what changed since."""

from __future__ import annotations

from array import array
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from hashlib import blake2b
from typing import Any, Final

# More messages than these are digested as one.
MOST_MESSAGES: Final = 1024
ENTRY: Final = 4  # characters that stand for a message: its role's letter, and 18 bits of digest
_MOST_CHARACTERS = 64
_MOST_TOKENS = 2**31


@dataclass(frozen=True)
class Asked:
    """The prompt of an answer, as digests; no text and no token of it.

    `messages` has ENTRY characters for each message, `tools` is the digest of the tools ("": none),
    and `rows` that of the namespace that holds the path. The path is prompt and answer without the
    last token, which never ran: `length` tokens whose digest is `path`. Its first `shared` tokens
    were expected in any later prompt; `shared_path` is their digest. `thought` is the answer's
    entry without its thinking; "" if prompt and answer had none. `told`: the user was told that the
    conversation lost its computed rows.
    """

    messages: str = field(repr=False)
    tools: str
    rows: str
    shared: int
    shared_path: str
    length: int
    path: str
    thought: str = ""
    told: bool = False

    def __post_init__(self) -> None:
        texts = (self.messages, self.tools, self.rows, self.shared_path, self.path, self.thought)
        if not all(isinstance(text, str) for text in texts) or type(self.told) is not bool:
            raise ValueError("what an answer was asked with is no text of ours")
        if len(self.messages) > ENTRY * (MOST_MESSAGES + 1) or len(self.messages) % ENTRY:
            raise ValueError(f"an answer was asked with {len(self.messages)} characters of digests")
        if any(len(text) > _MOST_CHARACTERS for text in texts[1:]):
            raise ValueError("a digest of what an answer was asked with is too long")
        for count in (self.shared, self.length):
            if type(count) is not int or not 0 <= count < _MOST_TOKENS:
                raise ValueError("an answer was asked with a number of tokens that no prompt has")

    @property
    def entries(self) -> list[str]:
        """The messages one by one."""
        return entries(self.messages)

    def to_json(self) -> dict[str, Any]:
        """Plain data that survives JSON; what has its default is left out."""
        made = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in made.items() if value != "" and value is not False}

    @classmethod
    def from_json(cls, obj: object) -> Asked | None:
        """Read the output of `to_json`; None, never an error, for anything foreign or damaged."""
        if not isinstance(obj, Mapping):
            return None
        texts = ("messages", "tools", "rows", "shared_path", "path", "thought")
        given = {name: obj.get(name, "") for name in texts}
        try:
            return cls(
                **given,
                shared=obj.get("shared", -1),
                length=obj.get("length", -1),
                told=obj.get("told", False),
            )
        except (ValueError, TypeError):
            return None


def entries(messages: str) -> list[str]:
    """The entries of messages, one by one."""
    return [messages[at : at + ENTRY] for at in range(0, len(messages), ENTRY)]


def short_digest(text: str) -> str:
    """Eight characters that stand for a text."""
    return _letters(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).digest())


def path_digests(ids: array[int], positions: Iterable[int]) -> dict[int, str]:
    """Digests of the first so many ids, for each position in range; one pass over them."""
    found: dict[int, str] = {}
    running, before = blake2b(digest_size=9), 0
    for position in sorted(set(positions)):
        if position > len(ids):
            break
        running.update(ids[before:position].tobytes())
        found[position] = _letters(running.copy().digest())
        before = position
    return found


def _letters(digest: bytes) -> str:
    return urlsafe_b64encode(digest).decode("ascii")
