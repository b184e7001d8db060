"""The processor time of each test, and so the tests that `make quick` leaves out.

`make durations` writes slow_tests.txt anew. A clock would tell how busy the machine was.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections import defaultdict
from pathlib import Path

import forks
import pytest

LISTED = Path(__file__).with_name("slow_tests.txt")
RECORD = "TEST_DURATIONS"  # the variable that names the file to record into
WORST, TOGETHER = 0.2, 1.0  # seconds of one case, and of all cases of a test, that quick runs take
_HEAD = "# Seconds of the slowest case and of all: of tests, and of fixtures by their file.\n"


def function_of(nodeid):
    """A test without its parameters."""
    return nodeid.partition("[")[0]


def file_of(nodeid):
    """The file of a test."""
    return nodeid.partition("::")[0]


class Recorder:
    """Appends a line for each test: its own processor time and its children's.

    What a module's fixtures cost is its file's, since whichever of its tests runs first pays it;
    what a session's cost is nobody's, since all pay it.
    """

    def __init__(self, path):
        self._path = path
        self._shared = 0.0  # seconds of shared fixtures since the test began

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item):
        before, self._shared = _spent(), 0.0
        yield
        self._write(item.nodeid, _spent() - before - self._shared)
        return True

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, fixturedef, request):
        before, inner = _spent(), self._shared
        result = yield
        if fixturedef.scope != "function":
            own = _spent() - before - (self._shared - inner)
            self._shared += own
            if fixturedef.scope == "module":
                self._write(file_of(request.node.nodeid), own)
        return result

    def _write(self, name, seconds):
        with self._path.open("a") as file:
            file.write(json.dumps([name, seconds]) + "\n")


def _spent():
    forked = forks.of_session.spent() if forks.of_session is not None else 0.0
    return sum(os.times()[:4]) + forked


def mark_slow(items):
    """Mark what a quick run leaves out; of a test with many quick cases it takes some."""
    lines = LISTED.read_text().splitlines()[1:]
    listed = {name: (float(worst), float(every)) for worst, every, name in map(str.split, lines)}
    seen = defaultdict(int)
    for item in items:
        name = function_of(item.nodeid)
        worst, every = listed.get(name, (0.0, 0.0))
        share = math.ceil(every / TOGETHER) if worst <= WORST else 0
        left_out = name in listed and not (share and seen[name] % share == 0)
        if left_out or file_of(name) in listed:
            item.add_marker(pytest.mark.slow)
        seen[name] += 1


def costly_first(items):
    """Order files by what their listed tests cost, the most first; within a file nothing moves."""
    costs = defaultdict(float)
    for line in LISTED.read_text().splitlines()[1:]:
        _, every, name = line.split()
        costs[file_of(name)] += float(every)
    items.sort(key=lambda item: -costs[file_of(item.nodeid)])


def write(recorded):
    """slow_tests.txt from what a run recorded; files that it ran nothing of stay as they were."""
    cases = defaultdict(list)
    for line in recorded.read_text().splitlines():
        name, seconds = json.loads(line)
        cases[function_of(name)].append(seconds)
    rows = {name: (max(s), sum(s)) for name, s in cases.items() if _is_slow(name, s)}
    ran = {file_of(name) for name in cases}
    for line in LISTED.read_text().splitlines()[1:]:
        worst, every, name = line.split()
        if file_of(name) not in ran and LISTED.parent.parent.joinpath(file_of(name)).exists():
            rows[name] = (float(worst), float(every))
    lines = (f"{worst:.1f} {every:.1f} {name}\n" for name, (worst, every) in sorted(rows.items()))
    LISTED.write_text(_HEAD + "".join(lines))


def _is_slow(name, seconds):
    """True if quick leaves a test out, or a whole file for the cost of its fixtures."""
    return sum(seconds) > TOGETHER or ("::" in name and max(seconds) > WORST)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
