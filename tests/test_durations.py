"""The tests that `make quick` and `make test` leave out: slow ones, and some cases of many."""

import json
from types import SimpleNamespace

import durations
import pytest


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """`listed(*lines)` makes these what slow_tests.txt says, in a tree of its own."""
    file = tmp_path / "tests" / "slow_tests.txt"
    file.parent.mkdir()
    monkeypatch.setattr(durations, "LISTED", file)

    def write(*lines):
        file.write_text("".join(f"{line}\n" for line in ("# The head.", *lines)))
        return file

    return write


def left_out(*nodeids):
    marked = []
    items = [
        SimpleNamespace(nodeid=one, add_marker=lambda _, one=one: marked.append(one))
        for one in nodeids
    ]
    durations.mark_slow(items)
    return marked


def test_what_is_listed_is_left_out_and_of_many_quick_cases_some(listed):
    listed("0.5 0.5 tests/test_a.py::test_long", "0.05 0.5 tests/test_a.py::test_many")
    cases = [f"tests/test_a.py::test_many[{n}]" for n in range(4)]
    long, short = "tests/test_a.py::test_long", "tests/test_a.py::test_short"
    assert left_out(long, short, *cases) == [long, cases[1], cases[3]]


class Case(SimpleNamespace):
    """A collected case, with the position of its value in each parameter."""

    def __init__(self, name, **indices):
        super().__init__(
            nodeid=f"tests/test_a.py::{name}", callspec=SimpleNamespace(indices=indices), marks=[]
        )

    __hash__ = object.__hash__

    def add_marker(self, mark):
        self.marks.append(mark.name)

    def get_closest_marker(self, name):
        return name in self.marks


def test_of_a_costly_test_the_cases_stay_that_fit_and_they_show_all_values(listed):
    listed("1.0 6.0 tests/test_a.py::test_many", "9.0 9.0 tests/test_a.py::test_one")
    many = [Case("test_many", kind=kind, size=size) for kind in range(3) for size in range(3)]
    others = [Case("test_one"), *(Case("test_short", n=n) for n in range(9))]
    durations.leave_to_soak([*many, *others])
    left = [one.callspec.indices for one in many if not one.marks]
    assert [tuple(one.values()) for one in left] == [(0, 0), (1, 1), (2, 2)]
    assert not any(one.marks for one in others)


def test_a_case_that_is_asked_for_alone_runs(listed):
    listed("1.0 9.0 tests/test_a.py::test_many")
    alone, long = Case("test_many", kind=2), Case("test_many", kind=3)
    long.add_marker(pytest.mark.soak)  # is none of those that are counted
    durations.leave_to_soak([long, alone])
    assert alone.marks == []


def test_of_a_file_whose_fixtures_are_slow_nothing_runs(listed):
    listed("2.0 2.0 tests/test_a.py")
    assert left_out("tests/test_a.py::test_x", "tests/test_b.py::test_x") == [
        "tests/test_a.py::test_x"
    ]


def test_files_that_cost_most_come_first_each_in_its_own_order(listed):
    listed(
        "0.5 0.5 tests/test_a.py::test_long",
        "2.0 2.0 tests/test_b.py",
        "0.5 1.0 tests/test_b.py::test_long",
        "0.5 2.5 tests/test_c.py::test_long",
    )
    names = [f"tests/test_{file}.py::test_{n}" for file in "zabc" for n in (2, 1)]
    items = [SimpleNamespace(nodeid=one) for one in names]
    durations.costly_first(items)
    wanted = [f"tests/test_{file}.py::test_{n}" for file in "bcaz" for n in (2, 1)]
    assert [item.nodeid for item in items] == wanted


def test_a_run_of_some_files_lists_them_anew_and_leaves_the_others(listed, tmp_path):
    file = listed(
        "9.0 9.0 tests/test_a.py::test_gone",
        "3.0 3.0 tests/test_b.py::test_kept",
        "3.0 3.0 tests/test_no_more.py::test_x",
    )
    for name in ("test_a.py", "test_b.py"):
        (file.parent / name).touch()
    recorded = tmp_path / "recorded"
    costs = {
        "tests/test_a.py": 1.5,
        "tests/test_a.py::test_x[1]": 0.3,
        "tests/test_a.py::test_x[2]": 0.1,
        "tests/test_a.py::test_quick": 0.04,
    }
    recorded.write_text("".join(f"{json.dumps(one)}\n" for one in costs.items()))
    durations.write(recorded)
    assert file.read_text().splitlines()[1:] == [
        "1.50 1.50 tests/test_a.py",
        "0.30 0.40 tests/test_a.py::test_x",
        "3.00 3.00 tests/test_b.py::test_kept",
    ]


INNER = """
import durations
import pytest

@pytest.fixture(scope="session")
def everybody_s():
    durations.clock += 100

@pytest.fixture(scope="module")
def model(everybody_s):
    durations.clock += 5

@pytest.fixture
def request_(model):
    durations.clock += 2

def test_first(request_):
    durations.clock += 1

def test_second(request_):
    durations.clock += 1
"""


def test_what_fixtures_of_a_module_cost_is_their_file_s(tmp_path, monkeypatch, capsys):
    """Whichever test is first; what it costs that a session is begun is nobody's."""
    monkeypatch.setattr(durations, "clock", 0, raising=False)
    monkeypatch.setattr(durations, "_spent", lambda: durations.clock)
    (tmp_path / "test_inner.py").write_text(INNER)
    recorded = tmp_path / "recorded"
    options = ["-q", "-pno:cacheprovider", "-pno:xdist", "-pno:asyncio", "--rootdir", str(tmp_path)]
    ended = pytest.main([*options, str(tmp_path)], plugins=[durations.Recorder(recorded)])
    assert ended == 0, capsys.readouterr().out
    spent = [json.loads(line) for line in recorded.read_text().splitlines()]
    assert [one for one in spent if one[1]] == [
        ["test_inner.py", 5],
        ["test_inner.py::test_first", 3],
        ["test_inner.py::test_second", 3],
    ]
