"""What each test costs in processor time, and so which ones `make quick` leaves out.

`make durations` writes slow_tests.txt anew. A clock would tell how busy the machine was.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections import defaultdict
from pathlib import Path

import pytest

LISTED = Path(__file__).with_name("slow_tests.txt")
RECORD = "TEST_DURATIONS"  # the variable that names the file to record into
WORST, TOGETHER = 0.2, 1.0  # seconds of one case, and of all cases of a test, that quick runs take
_HEAD = "# Seconds of a test's slowest case, and of all its cases; `make durations` writes this.\n"


def function_of(nodeid):
    """A test without its parameters."""
    return nodeid.partition("[")[0]


class Recorder:
    """Appends a line for each test: its own processor time and its children's."""

    def __init__(self, path):
        self._path = path

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item):
        before = sum(os.times()[:4])
        yield
        with self._path.open("a") as file:
            file.write(json.dumps([item.nodeid, sum(os.times()[:4]) - before]) + "\n")
        return True


def mark_slow(items):
    """Mark what a quick run leaves out; of a test with many quick cases it takes some."""
    lines = LISTED.read_text().splitlines()[1:]
    listed = {name: (float(worst), float(every)) for worst, every, name in map(str.split, lines)}
    seen = defaultdict(int)
    for item in items:
        name = function_of(item.nodeid)
        worst, every = listed.get(name, (0.0, 0.0))
        share = math.ceil(every / TOGETHER) if worst <= WORST else 0
        if name in listed and not (share and seen[name] % share == 0):
            item.add_marker(pytest.mark.slow)
        seen[name] += 1


def write(recorded):
    """slow_tests.txt from what a run of all tests recorded."""
    cases = defaultdict(list)
    for line in recorded.read_text().splitlines():
        nodeid, seconds = json.loads(line)
        cases[function_of(nodeid)].append(seconds)
    slow = sorted(n for n, s in cases.items() if max(s) > WORST or sum(s) > TOGETHER)
    rows = (f"{max(cases[n]):.1f} {sum(cases[n]):.1f} {n}\n" for n in slow)
    LISTED.write_text(_HEAD + "".join(rows))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
