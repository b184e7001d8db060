"""A JSON object in a line that nobody vouches for: what is wrong with it is told in words."""

from __future__ import annotations

import json
from typing import Any, NoReturn


def json_object(data: bytes) -> dict[str, Any]:
    """The object of a line; ValueError where it holds anything else, NaN and infinity included."""
    try:
        found = json.loads(data, parse_constant=_no_constant)
    except UnicodeDecodeError:
        _refuse(" (not UTF-8)")
    except json.JSONDecodeError as error:
        _refuse(f" ({error.msg})")
    except RecursionError:
        _refuse(" (too deep)")
    except ValueError:  # Python reads no whole number of thousands of digits
        raise ValueError("a number in it has too many digits") from None
    if not isinstance(found, dict):
        _refuse("")
    return found


def _no_constant(name: str) -> NoReturn:
    raise json.JSONDecodeError(f"{name} is no number there", name, 0)


def _refuse(why: str) -> NoReturn:
    raise ValueError(f"it is no JSON object{why}") from None
