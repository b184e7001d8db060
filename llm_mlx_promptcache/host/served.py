"""ServedEngine: a model that runs over several machines, asked of the process that leads them.

It is started by `llm mlx-cached serve` alone, and never run in the asking process instead: it does
not fit there. Importing this file imports no MLX.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Final, NoReturn

from ..cache.plain_files import read_plain
from ..config import MODEL_ID, load_settings, write_private_file
from ..models.errors import ModelLoadError, one_line
from ..models.references import served_name
from ..models.served import how_to_serve, serve_command
from .asking import EndedMeanwhile, asked
from .client import RemoteEngine
from .errors import HostLost, HostStopped
from .hello import hello
from .place import HostUnavailable, Place, host_place
from .start import HostRefused, find

if TYPE_CHECKING:
    from .frames import Channel

_MOST_BYTES: Final = 4096  # of why one ended
_LONGEST: Final = 500  # characters of it


class ServedEngine(RemoteEngine):
    """The engine of a model over several machines, in the process of rank 0."""

    @property
    def name(self) -> str:
        """Its name for users, behind `mlx-cached/`."""
        return served_name(self._reference)

    def unload(self, timeout: float = 30.0) -> bool:
        """Nothing: `llm mlx-cached stop` ends it, and all of its ranks."""
        return False

    def _place(self) -> Place:
        return host_place(self.name)

    def _connected(self, place: Place) -> Channel:
        try:
            channel = find(place, mine=hello(place), waits=self._patience.waits)
        except HostRefused as error:
            raise ModelLoadError(
                f"{error}; llm mlx-cached stop {quote(self.name)} ends it, and this starts it anew:"
                f" {serve_command(self._reference)}"
            ) from error
        if channel is None:
            why = why_ended(place)
            raise ModelLoadError(how_to_serve(self._reference) + (why and f" ({why})"))
        return channel

    def _keep(self) -> float | None:
        return None

    def _lost(self, why: str) -> HostLost:
        return HostLost(
            f"{why}; what it had written to the disk is reused: serve it again, and ask"
        )

    def _here(self, why: str) -> NoReturn:
        """Nobody else can run it."""
        raise ModelLoadError(f"{MODEL_ID}/{self.name} can't be asked: {why}")


def served_names() -> tuple[str, ...]:
    """The names of all models that run over several machines, served now or not."""
    return tuple(model.name for model in load_settings().models if model.served is not None)


def is_served(name: str) -> bool:
    """True if one of them is served now, or something is there that does not answer."""
    try:
        return asked({"ask": "ps"}, name) is not None
    except EndedMeanwhile:
        return False
    except (HostUnavailable, HostStopped):
        return True


def remember_end(place: Place, why: str) -> None:
    """Note why the ranks of a model have ended, for who asks next; "" where that was wished."""
    short = one_line(why, _LONGEST) if why else ""
    told = short.encode("utf-8", "backslashreplace").decode("utf-8")  # odd names of files
    with suppress(OSError):
        write_private_file(_ended(place), f"{time.time():.0f} {told}" if told else "")


def why_ended(place: Place) -> str:
    """The reason and time of their end, if it was no wish of the user's."""
    with suppress(OSError, ValueError, OverflowError):
        told = read_plain(_ended(place), _MOST_BYTES).decode("utf-8")
        at, _, why = told.partition(" ")
        if why:
            clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(at)))
            return f"it ended at {clock}: {one_line(why, _LONGEST)}"
    return ""


def _ended(place: Place) -> Path:
    return place.folder / "ended"
