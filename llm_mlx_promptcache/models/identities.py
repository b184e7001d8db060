"""A loaded model's identities, given once its files are known to be those that were loaded."""

from __future__ import annotations

import json
import logging
import secrets
import weakref
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..cache.identity import fingerprint, rows_identity
from ..cache.manifest import FilesChanged
from ..cache.plain_files import read_plain
from ..config import write_private_file
from .errors import one_line
from .loading import LoadedModel, describe
from .progress import BetweenSteps, unasked

_log = logging.getLogger(__name__)

_DIGESTS = "digests.json"
_MOST_DIGESTS = 4096
_MOST_BYTES = 1 << 20  # of the file


class Identified(NamedTuple):
    """`cache/identity.py`'s identities, and why nothing of the model may be kept, if that is so."""

    model: str
    rows: str
    uncached: str = ""


def identify(loaded: LoadedModel, folder: Path, step: BetweenSteps = unasked) -> Identified:
    """Identify a model; digests of its large files are kept in `folder`.

    Called once all of it is read. If its files differ from those listed before, nobody can say what
    was loaded: it answers, and nothing of it is cached. `step` is called before each piece of a
    file that is read for it.
    """
    known = _known(folder / _DIGESTS)
    before = dict(known)
    try:
        if loaded.files is None:
            raise FilesChanged("nobody listed its files before it")
        model = fingerprint(loaded.files, known, step)
        loaded.files.check()
    except FilesChanged as error:
        return _unknown(loaded, f"a model's files changed while it was loaded ({one_line(error)})")
    except OSError as error:
        return _unknown(loaded, f"a model's files can't all be read ({one_line(error)})")
    if known != before:
        with suppress(OSError):  # the next process reads the files again
            write_private_file(folder / _DIGESTS, _written(known))
    return Identified(model, rows_identity(model, describe(loaded)))


def _unknown(loaded: LoadedModel, why: str) -> Identified:
    """An identity that shares nothing with any other, not even with the same model loaded again."""
    why = f"{why}, so nothing of it is cached; load it again"
    here = weakref.ref(loaded)
    _log.warning("%s: %s", loaded.folder, why, extra={"holds": lambda: here() is not None})
    name = f"unknown-{secrets.token_hex(16)}"
    return Identified(name, name, why)


def _known(path: Path) -> dict[str, str]:
    """The stored digests, the newest last; none if the file is damaged."""
    with suppress(OSError, ValueError, RecursionError):
        digests = json.loads(read_plain(path, _MOST_BYTES))
        if isinstance(digests, dict):
            return {key: digest for key, digest in digests.items() if isinstance(digest, str)}
    return {}


def _written(known: dict[str, str]) -> str:
    return json.dumps(dict(list(known.items())[-_MOST_DIGESTS:]))
