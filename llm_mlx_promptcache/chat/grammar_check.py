"""Checks that llguidance can hold an answer to a grammar, before any token is made.

llguidance is imported on use, so that commands which only list models do not load it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

__all__ = ["UNSATISFIABLE", "json_rule", "refusal"]

UNSATISFIABLE = "no text satisfies it"
_REASON_LIMIT = 200
# A token by its id; the checking tokenizer has one token a byte, whatever the model has.
_TOKEN = re.compile(r"<\[\d+\]>")
_PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")
# As json.dumps writes: best known to models, and tokens without a choice are forced. Escapes
# without \u: half a surrogate pair would be valid JSON that no text can hold.
_JSON_OPTIONS = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": '"\\bfnrt',
}


def json_rule(schema: Mapping[str, Any]) -> str:
    """A schema as the right side of a rule: one line, a JSON document as json.dumps writes it."""
    return "%json " + json.dumps({**schema, "x-guidance": _JSON_OPTIONS}, ensure_ascii=False)


def refusal(text: str) -> str:
    """The reason why llguidance refuses a grammar, in one line; `UNSATISFIABLE`, or "" for none."""
    from llguidance import LLMatcher

    matcher = LLMatcher(_bytes_tokenizer(), _TOKEN.sub("<[0]>", text), log_level=0)
    if matcher.is_error():
        reason = short(matcher.get_error())
        return UNSATISFIABLE if reason.startswith("Unsatisfiable schema") else reason
    possible = any(matcher.compute_bitmask()) or matcher.is_accepting()
    return "" if possible and not matcher.is_error() else UNSATISFIABLE


def short(reason: str) -> str:
    """The reason in one line, without its place in our text or a quote of it."""
    reason = " ".join(reason.partition("\n   1 |")[0].split())
    reason = _PLACE.sub("", reason)
    return reason[:_REASON_LIMIT] + ("..." if len(reason) > _REASON_LIMIT else "")


@cache
def _bytes_tokenizer() -> Any:
    """A tokenizer with one token a byte: enough to check a grammar."""
    from llguidance import LLTokenizer

    return LLTokenizer("byte")
