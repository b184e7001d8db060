"""The rule of arrows: front ends -> engine -> cache, chat; inside the cache, who stands on whom."""

import ast
import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "llm_mlx_promptcache"
# The adapter, and the name that programs import it by.
LANGCHAIN = {"langchain_adapter", "langchain_mlx_cached"}
FRONT_ENDS = {"plugin", "commands", "llm_adapter"} | LANGCHAIN
FORBIDDEN = {
    "cache": FRONT_ENDS
    | {"engine", "host", "chat", "config", "llm", "langchain_core", "transformers"},
    "chat": FRONT_ENDS
    | {"engine", "host", "cache", "config", "llm", "langchain_core", "mlx", "mlx_lm"},
    "host": FRONT_ENDS | {"machines", "llm", "langchain_core"},
    "machines": FRONT_ENDS | {"llm", "langchain_core"},
    "engine": FRONT_ENDS | {"host", "machines", "llm", "langchain_core"},
    "models": FRONT_ENDS | {"engine", "host", "machines", "llm", "langchain_core"},
    "llm_adapter": {"plugin", "commands", "langchain_core"} | LANGCHAIN,
}
# The cache's own files that its sub-rooms may stand on; its others put the sub-rooms together.
GROUND = {
    "device",
    "explain",
    "insertion",
    "sizes",
    "span",
    "store",
    "trie",
    "worth",
}
# What of the cache each of its sub-rooms may import: memory and disk never each other.
INSIDE = {
    "layers": {"layers"},
    "memory": {"memory", "layers"} | GROUND,
    "disk": {"disk", "layers"} | GROUND,
}
TENSORS = {
    "device.py",
    "disk/restore.py",
    "disk/span_file.py",
    "disk/span_header.py",
    "disk/streams.py",
    "disk/tensor_places.py",
    "layers/device_memory.py",
    "layers/kinds.py",
    "layers/layout.py",
    "layers/own_state.py",
    "layers/rewinding.py",
    "layers/pieces.py",
}


_spec = importlib.util.spec_from_file_location("rooms", ROOT / "docs" / "rooms.py")
pictured = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pictured)


def imported(path):
    """The imports of a file, each name in full."""
    return pictured.imported(path, ROOT)


def listed():
    """The files that the design's drawing of the rooms has."""
    text = (ROOT / "docs" / "design.md").read_text().partition("\n## Rooms\n")[2]
    folders = []
    for line in text.split("```")[1].splitlines()[1:]:
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name.removesuffix("/"))
        else:
            yield "/".join([*folders, name])


def rooms(path):
    """The rooms and packages that a file imports from."""
    for name in imported(path):
        parts = name.split(".")
        yield parts[1] if parts[0] == PACKAGE and len(parts) > 1 else parts[0]


def within(path, room):
    """The files and sub-rooms of a room that a file imports from."""
    start = f"{PACKAGE}.{room}."
    return {n.removeprefix(start).split(".")[0] for n in imported(path) if n.startswith(start)}


def test_imports_are_told_in_full(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / PACKAGE / "cache" / "disk" / "one.py"
    path.parent.mkdir(parents=True)
    path.write_text("import mlx.core as mx\nfrom .. import device\nfrom ..memory.order import A, B")
    inside = f"{PACKAGE}.cache"
    assert list(imported(path)) == [
        "mlx.core",
        f"{inside}.device",
        f"{inside}.memory.order.A",
        f"{inside}.memory.order.B",
    ]
    assert set(rooms(path)) == {"mlx", "cache"}
    assert within(path, "cache") == {"device", "memory"}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_arrows_between_rooms_run_one_way(room):
    files = list((ROOT / PACKAGE / room).rglob("*.py"))
    assert len(files) > 2
    for path in files:
        assert FORBIDDEN[room].isdisjoint(rooms(path)), path


@pytest.mark.parametrize("room", INSIDE)
def test_arrows_inside_the_cache_run_one_way(room):
    files = list((ROOT / PACKAGE / "cache" / room).glob("*.py"))
    assert len(files) > 3
    for path in files:
        assert within(path, "cache") <= INSIDE[room], path


def test_the_ground_of_the_cache_stands_on_nothing_above_it():
    for name in GROUND:
        assert within(ROOT / PACKAGE / "cache" / f"{name}.py", "cache") <= GROUND | {"layers"}, name


def test_only_the_files_that_say_so_know_tensors():
    cache = ROOT / PACKAGE / "cache"
    files = [path for path in cache.rglob("*.py") if {"mlx", "mlx_lm"} & set(rooms(path))]
    assert {path.relative_to(cache).as_posix() for path in files} == TENSORS


# What a client of the host never imports, beside a front end's own packages: all of it is slow.
HEAVY = ("huggingface_hub", "llguidance", "mlx", "mlx_lm", "numpy", "tokenizers", "transformers")
CLIENTS = (
    "child",
    "client",
    "engines",
    "environment",
    "exchange",
    "frames",
    "hello",
    "hung",
    "place",
    "served",
    "start",
)


def test_a_client_of_the_host_imports_nothing_heavy():
    """In a process of its own: what is imported anywhere below counts."""
    modules = ", ".join(f"{PACKAGE}.host.{name}" for name in CLIENTS)
    told = f"import sys, {modules}; print(*(n for n in {HEAVY} if n in sys.modules))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("\n", 0), done.stderr


def test_nobody_imports_a_front_end():
    for path in (ROOT / PACKAGE).rglob("*.py"):
        room = path.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py")
        if room not in FRONT_ENDS:
            assert FRONT_ENDS.isdisjoint(rooms(path)), path


# `compat.py` has mlx-lm's own names.
SHARED_NAMES = {"PromptTrie", "CacheOrder"}


def types_in(path):
    """The classes of a file and its names for other types, such as `Tokens = array`."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            yield node.name.lstrip("_")
        elif isinstance(node, ast.Assign):
            names = (target.id.lstrip("_") for target in node.targets if hasattr(target, "id"))
            yield from (name for name in names if name[:1].isupper() and not name.isupper())


def test_no_two_types_have_one_name():
    found = Counter(
        name
        for package in (PACKAGE, *LANGCHAIN)
        for path in (ROOT / package).rglob("*.py")
        for name in types_in(path)
    )
    assert {name for name, count in found.items() if count > 1} == SHARED_NAMES


def test_names_of_types_are_seen(tmp_path):
    path = tmp_path / "one.py"
    path.write_text(
        "class _One: ...\nTwo = list[int]\nTHREE = 3\nT = TypeVar('T')\nfour = Five = 5"
    )
    assert list(types_in(path)) == ["One", "Two", "Five"]


def test_the_design_names_each_file_and_no_other():
    files = [path for package in (PACKAGE, *LANGCHAIN) for path in (ROOT / package).rglob("*.py")]
    there = {path.relative_to(ROOT).as_posix() for path in files if path.name != "__init__.py"}
    drawn = Counter(listed())
    assert {name for name, count in drawn.items() if count > 1} == set()
    assert there - set(drawn) == set(), "files that the drawing lacks"
    assert set(drawn) - there == set(), "names in the drawing without a file"


def test_the_picture_of_the_rooms_is_what_the_imports_give():
    text = (ROOT / "docs" / "rooms.svg").read_text()
    assert text == pictured.picture(ROOT), "run `make cog`"


def test_the_picture_has_an_arrow_for_each_import_that_follows_from_no_other():
    found = {("a", "b"), ("b", "c"), ("a", "c"), ("c", "d"), ("a", "d")}
    assert pictured.reduced(found) == {("a", "b"), ("b", "c"), ("c", "d")}
    with pytest.raises(ValueError, match="imports from itself through other rooms"):
        pictured.reduced({*found, ("d", "a")})


def test_what_the_cache_shares_is_its_ground():
    names = {path.stem for path in pictured.files_of(ROOT)[pictured.SHARED]}
    assert names == GROUND


def test_make_quick_runs_tests_of_every_room():
    """Of each folder of tests: those that are not listed as slow, which `make quick` leaves out."""
    tests = ROOT / "tests"
    slow = {line.split()[2] for line in (tests / "slow_tests.txt").read_text().splitlines()[1:]}
    folders = {path.parent for path in tests.rglob("test_*.py")}
    for folder in folders:
        names = {
            f"{path.relative_to(ROOT).as_posix()}::{node.name}"
            for path in folder.glob("test_*.py")
            if path.relative_to(ROOT).as_posix() not in slow
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        }
        assert len(names - slow) > 5, folder
