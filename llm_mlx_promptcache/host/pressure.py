"""Shortage of memory on this machine, as the system itself reports it."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

_STALLS = Path("/proc/pressure/memory")
_LEVEL = b"kern.memorystatus_vm_pressure_level"
_WARNING = 2  # macOS: 1 is normal, 2 warning, 4 critical
_STALLED = 20.0  # Linux: percent of ten seconds in which some process waited for memory


def under_pressure() -> bool:
    """True if programs here wait for memory; False where the system does not tell."""
    if sys.platform == "darwin":
        return _level_on_macos() >= _WARNING
    with suppress(OSError):
        return stalled_in(_STALLS.read_text(encoding="ascii", errors="replace")) > _STALLED
    return False


def stalled_in(text: str) -> float:
    """Percent of the last ten seconds, from Linux's pressure stall information; 0 where none is.

    Its first line is `some avg10=0.12 avg60=0.05 avg300=0.01 total=1234`.
    """
    line = next((line for line in text.splitlines() if line.startswith("some ")), "")
    fields = dict(field.partition("=")[::2] for field in line.split()[1:])
    with suppress(ValueError):
        return float(fields.get("avg10", "0"))
    return 0.0


def _level_on_macos() -> int:
    level, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    with suppress(OSError, AttributeError):
        call = ctypes.CDLL(None).sysctlbyname
        if call(_LEVEL, ctypes.byref(level), ctypes.byref(size), None, ctypes.c_size_t(0)) == 0:
            return level.value
    return 0
