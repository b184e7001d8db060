"""The processor time of each test, and so what `make quick` and `make test` leave out.

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
# Seconds of one case, and of all cases of a test, that quick runs take.
WORST, TOGETHER = 0.05, 0.25
MOST = 2.0  # seconds of all cases of a test that `make test` takes
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
    listed = _listed()
    seen = defaultdict(int)
    for item in items:
        name = function_of(item.nodeid)
        worst, every = listed.get(name, (0.0, 0.0))
        share = math.ceil(every / TOGETHER) if worst <= WORST else 0
        left_out = name in listed and not (share and seen[name] % share == 0)
        if left_out or file_of(name) in listed:
            item.add_marker(pytest.mark.slow)
        seen[name] += 1


def leave_to_soak(items):
    """Mark the cases of costly tests that `make soak` runs: all beyond those that take `MOST`.

    At least one case of each test stays, and of each parameter as many values as there is room for.
    """
    listed = _listed()
    tests = defaultdict(list)
    for item in items:
        if not item.get_closest_marker("soak"):
            tests[function_of(item.nodeid)].append(item)
    for name, cases in tests.items():
        _, every = listed.get(name, (0.0, 0.0))
        if every > MOST:
            kept = _spread(cases, math.ceil(len(cases) * MOST / every))
            for case in (one for one in cases if one not in kept):
                case.add_marker(pytest.mark.soak)


def _spread(cases, number):
    """A number of the cases, each the first of those that bring the most values not yet seen."""
    specs = {case: getattr(case, "callspec", None) for case in cases}
    values = {case: set(spec.indices.items()) if spec else set() for case, spec in specs.items()}
    kept, seen = [], set()
    for _ in range(number):
        left = [case for case in cases if case not in kept]
        kept.append(max(left, key=lambda case: len(values[case] - seen)))
        seen |= values[kept[-1]]
    return kept


def costly_first(items):
    """Order files by what their listed tests cost, the most first; within a file nothing moves."""
    costs = defaultdict(float)
    for name, (_, every) in _listed().items():
        costs[file_of(name)] += min(every, MOST)
    items.sort(key=lambda item: -costs[file_of(item.nodeid)])


def _listed():
    """Seconds of the slowest case and of all, by the name of a test in slow_tests.txt."""
    lines = LISTED.read_text().splitlines()[1:]
    return {name: (float(worst), float(every)) for worst, every, name in map(str.split, lines)}


def write(recorded):
    """slow_tests.txt from what a run recorded; files that it ran nothing of stay as they were."""
    cases = defaultdict(list)
    for line in recorded.read_text().splitlines():
        name, seconds = json.loads(line)
        cases[function_of(name)].append(seconds)
    rows = {name: (max(s), sum(s)) for name, s in cases.items() if _is_slow(name, s)}
    ran = {file_of(name) for name in cases}
    for name, seconds in _listed().items():
        if file_of(name) not in ran and LISTED.parent.parent.joinpath(file_of(name)).exists():
            rows[name] = seconds
    lines = (f"{worst:.2f} {every:.2f} {name}\n" for name, (worst, every) in sorted(rows.items()))
    LISTED.write_text(_HEAD + "".join(lines))


def _is_slow(name, seconds):
    """True if quick leaves a test out, or a whole file for the cost of its fixtures."""
    return sum(seconds) > TOGETHER or ("::" in name and max(seconds) > WORST)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
