"""Hosts that a session of tests has started and not ended, found by their environment."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

MODULES = ("llm_mlx_promptcache.host", "llm_mlx_promptcache.machines")


def of_session(token, folder, seconds=5.0):
    """The command lines of hosts that bear its token or live in its folder; each is ended.

    One that has given its lock back and is just leaving has so many seconds for that.
    """
    until = time.monotonic() + seconds
    while (found := _found(token, folder)) and time.monotonic() < until:
        time.sleep(0.05)
    for pid in found:
        os.kill(pid, signal.SIGTERM)
    return [f"{pid}: {told[:200]}" for pid, told in found.items()]


def _found(token, folder):
    return {
        pid: told
        for pid, told in processes()
        if any(name in told for name in MODULES) and (token in told or str(folder) in told)
    }


def processes():
    """The numbers of this user's processes, each with its arguments and environment."""
    if sys.platform == "darwin":
        command = ["ps", "-xEww", "-o", "pid=,command="]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for line in lines.splitlines():
            pid, _, told = line.strip().partition(" ")
            yield int(pid), told
        return
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = b" ".join((process / name).read_bytes() for name in ("cmdline", "environ"))
        except OSError:  # it has ended, or is somebody else's
            continue
        yield int(process.name), told.replace(b"\0", b" ").decode("utf-8", "replace")
