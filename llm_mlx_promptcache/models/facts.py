"""Facts that were learned from the models themselves, kept from process to process.

A fact belongs to a model's fingerprint, a kind, the versions of mlx and mlx-lm, and the device: an
upgrade or another machine asks again. No part of a conversation is ever among them.
"""

from __future__ import annotations

import json
import os
import re
import stat
import threading
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from ..cache.disk.files import Files
from ..config import cache_folder, write_private_file

_FILE = "facts.json"
_FORMAT = 2
_MOST_FACTS = 512
_MOST_CHARACTERS = 4096  # of one fact as JSON
_MOST_BYTES = 4 << 20  # of the file
_FINGERPRINT = re.compile(r"[0-9a-f]{64}", re.ASCII)


class _Key(NamedTuple):
    identity: str
    kind: str
    environment: str


class ModelFacts:
    """JSON values by model and kind, in one owner-only file; safe from several threads.

    The file is untrusted: whoever gets a value checks it. A damaged file counts as absent. Two
    processes that write at once may lose one fact, which is then learned again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._here: dict[_Key, Any] = {}  # holds also where the file can't be written
        self._lock = threading.Lock()

    def get(self, identity: str, kind: str) -> Any:
        """The stored value; None if there is none, or `identity` is no fingerprint."""
        key = _Key(identity, kind, environment())
        with self._lock:
            if key not in self._here and _FINGERPRINT.fullmatch(identity):
                self._here = _read(self._path) | self._here
            return self._here.get(key)

    def put(self, identity: str, kind: str, value: Any) -> None:
        """Store a JSON value and write it at once: for facts that are learned once, not each step.

        ValueError if it is no JSON or too long. Without a fingerprint nothing is stored.
        """
        text = json.dumps(value, allow_nan=False)
        if len(text) > _MOST_CHARACTERS:
            raise ValueError(
                f"a fact of kind {kind!r} has {len(text)} characters, and {_MOST_CHARACTERS} are"
                " the most; keep less of it"
            )
        if not _FINGERPRINT.fullmatch(identity):
            return
        key = _Key(identity, kind, environment())
        with self._lock:
            facts = _read(self._path) | self._here
            facts.pop(key, None)
            facts[key] = json.loads(text)
            # The newest stand last: the oldest are dropped.
            self._here = dict(list(facts.items())[-_MOST_FACTS:])
            with suppress(OSError):  # the next process learns it again
                write_private_file(self._path, _written(self._here))


@cache
def _of(folder: Path) -> ModelFacts:
    return ModelFacts(folder / _FILE)


def model_facts() -> ModelFacts:
    """The facts of this process, beside its cache."""
    return _of(cache_folder())


def environment() -> str:
    """Everything besides the model that decides a fact: mlx, mlx-lm, the default device's name."""
    found = environment_parts()
    return f"mlx {found['mlx']}, mlx-lm {found['mlx-lm']}, {found['device']}"


def environment_parts() -> dict[str, str]:
    """The same part by part, by what each is called."""
    device = mx.default_device()
    name = mx.device_info(device).get("device_name", "")
    kind = "cpu" if device.type == mx.DeviceType.cpu else "gpu"
    return {"mlx": version("mlx"), "mlx-lm": version("mlx-lm"), "device": f"{kind} {name}"}


def _written(facts: dict[_Key, Any]) -> str:
    listed = [[*key, facts[key], _digest(key, facts[key])] for key in facts]
    return json.dumps({"format": _FORMAT, "facts": listed})


def _digest(key: _Key, value: Any) -> str:
    """A digest that shows flipped bits in a fact; ValueError if the value is no JSON."""
    text = json.dumps([*key, value], sort_keys=True, allow_nan=False)
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _read(path: Path) -> dict[_Key, Any]:
    """The facts in a file; none where it is absent, damaged, too large, or not its owner's own."""
    with suppress(OSError, ValueError, RecursionError):
        descriptor = Files().open(path)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            own = status.st_uid == os.geteuid() and not status.st_mode & 0o022
            if not stat.S_ISREG(status.st_mode) or not own:
                return {}
            content = file.read(_MOST_BYTES + 1)
        if len(content) <= _MOST_BYTES:
            return _checked(json.loads(content))
    return {}


def _checked(data: Any) -> dict[_Key, Any]:
    """The entries of JSON data that have the form of facts, newest kept; the rest is dropped."""
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        return {}
    entries = data.get("facts")
    if not isinstance(entries, list):
        return {}
    facts: dict[_Key, Any] = {}
    for entry in entries[-_MOST_FACTS:]:
        if not isinstance(entry, list) or len(entry) != 5:
            continue
        *names, value, digest = entry
        if not all(isinstance(name, str) for name in names):
            continue
        key = _Key(*names)
        with suppress(ValueError):  # NaN and infinity are no JSON
            short = len(json.dumps(value, allow_nan=False)) <= _MOST_CHARACTERS
            if short and digest == _digest(key, value):
                facts[key] = value
    return facts
