"""Hosts that a session of tests has started and not ended, found by their environment."""

import os
import signal
import subprocess
import sys
from pathlib import Path

MODULE = "llm_mlx_promptcache.host"


def of_session(token, folder):
    """The command lines of hosts that bear its token or live in its folder; each is ended."""
    left = []
    for pid, told in _processes():
        if MODULE in told and (token in told or str(folder) in told):
            os.kill(pid, signal.SIGTERM)
            left.append(f"{pid}: {told[:200]}")
    return left


def _processes():
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
