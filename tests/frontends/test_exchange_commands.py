"""A prefix that was computed in one home is used in another, through a file, or refused."""

import json
import os
import stat
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
import xxhash
from safetensors import safe_open

LIMIT = ("-o", "max_tokens", "4")
SYSTEM = "the answer of the system and the capital of the user"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount, and be another")
ASKED = ("-m", "mlx-cached", "-s", SYSTEM, *LIMIT)


@pytest.fixture(scope="module")
def warmed_once(new_home, tiny_llama, tmp_path_factory):
    """A home with a model, a system prompt that was computed, and its file."""
    home = new_home()
    home.ours("default", str(tiny_llama()))
    file = tmp_path_factory.mktemp("prompts") / "system.txt"
    file.write_text(SYSTEM)
    home.llm("mlx-cached", "warm", "-s", str(file))
    return home, file


@pytest.fixture
def warmed(warmed_once, tmp_path):
    home, file = warmed_once
    return home.copied_to(tmp_path / "sender"), str(file)


@pytest.fixture
def other(new_home, tiny_llama):
    """Another home, with a model of the same files."""
    home = new_home()
    home.ours("default", str(tiny_llama()))
    return home


@pytest.fixture
def sent(warmed, tmp_path):
    """A file of that system prompt."""
    home, system = warmed
    home.ours("export", str(tmp_path / "sent"), "-s", system)
    return tmp_path / "sent"


def model_of(home):
    return home.ours("default")[0]


def test_an_imported_prefix_is_not_prefilled(warmed, other, tmp_path):
    home, system = warmed
    (span,) = home.told("tree")
    file = tmp_path / "sent.safetensors"
    out, _ = home.llm("mlx-cached", "export", str(file), "-s", system)
    assert out.startswith(f"{span['end']} tokens are in {file}: ")
    out, _ = other.llm("mlx-cached", "import", str(file), "-m", model_of(other))
    (taken,) = other.told("tree")
    assert out.startswith(f"{span['end']} tokens of ")
    assert out.endswith(f"to the span {taken['id'][:8]}")
    assert (taken["end"], taken["tier"], taken["bytes"] > 0) == (span["end"], span["tier"], True)
    assert taken["model"] == model_of(other)
    assert other.ours("check")[0] == "all is well"
    other.llm(*ASKED, "Hello")
    home.llm(*ASKED, "Hello")
    here, there = other.last(), home.last()
    assert here["response"] == there["response"]
    assert here["details"]["cached"] == span["end"]
    new = here["input_tokens"] - span["end"]
    assert here["details"]["prefilled"] / new == 1.00
    out, _ = other.llm("mlx-cached", "import", str(file), "-m", model_of(other))
    assert out.startswith(f"all {span['end']} tokens were stored already")


def test_a_span_and_an_answer_are_exported_by_their_ids(warmed, other, tmp_path):
    home, _ = warmed
    home.llm(*ASKED, "Hello capital")
    answer = home.last()
    spans = home.told("tree")
    last = max(spans, key=lambda span: span["end"])
    told = home.told("export", str(tmp_path / "a"), "--span", last["id"][:8])
    assert (told["tokens"], told["of"]) == (last["end"], last["end"])
    told = home.told("export", str(tmp_path / "b"), "--response", answer["id"])
    assert told["tokens"] == told["of"] == answer["input_tokens"]
    found = other.told("import", str(tmp_path / "b"), "-m", model_of(other))
    assert (found["tokens"], found["known"]) == (answer["input_tokens"], 0)
    found = other.told("import", str(tmp_path / "a"), "-m", model_of(other))
    assert (found["tokens"], found["known"]) == (last["end"], answer["input_tokens"])
    # Only what was not there yet came beside it.
    assert other.told("stats")["tokens"] == last["end"]
    other.llm(*ASKED, "Hello capital")
    assert other.last()["details"]["prefilled"] == 1


def test_law_12_the_file_is_its_owners_alone_and_tells_no_text(warmed, tmp_path):
    home, system = warmed
    file = tmp_path / "sent.safetensors"
    home.llm("mlx-cached", "export", str(file), "-s", system)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp")] == []
    with safe_open(file, "numpy") as opened:  # a valid safetensors file
        told = json.dumps(opened.metadata())
        assert len(opened.get_tensor("tokens")) == home.told("tree")[0]["end"]
    for secret in (SYSTEM, str(Path.home()), str(home.folder), model_of(home)):
        assert secret not in told
    (span,) = home.told("tree")
    assert span["namespace"] not in told
    (line,) = home.ours("export", str(file), "-s", system, status=1)[1].splitlines()
    assert "is there already" in line


def refused(home, *arguments):
    (line,) = home.ours("import", *arguments, status=1)[1].splitlines()
    assert home.told("tree") == []
    assert line.startswith("Error: ")
    return line


def forged(content, label=None, **about):
    """An exported file of something else, with a digest that fits."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header["__metadata__"]
    metadata["about"] = json.dumps(json.loads(metadata["about"]) | about)
    if label is not None:
        metadata["label"] = label
    text = json.dumps(header).encode()
    made = len(text).to_bytes(8, "little") + text + content[8 + length : -16]
    return made + xxhash.xxh3_128_digest(made)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"mlx": "0.0.1"}, "here: mlx is '0.0.1' there and is '"),
        ({"mlx-lm": "0.0.1"}, "here: mlx-lm is '0.0.1' there and is '"),
        ({"device": "gpu Apple M9"}, "here: device is 'gpu Apple M9' there and is 'cpu "),
        ({"model files": "f" * 64}, f"here: model files is '{'f' * 64}' there and is '"),
        ({"weather": "fine"}, "here: weather is 'fine' there and is not said here"),
        (
            {"x\x1b]0;a\x07\nError: b": "c"},
            "here: 'x\\x1b]0;a\\x07\\nError: b' is 'c' there and is",
        ),
        ({"keys and values": "[8, 32, 0]"}, "layers are 2 x rows {} there and 2 x quantized_rows"),
        ({"keys and values": "[7, 32, 0]"}, "settings of keys and values that are none"),
        ({"keys and values": "[[["}, "settings of keys and values that are none"),
        ({"keys and values": "7"}, "settings of keys and values that are none"),
    ],
)
def test_each_thing_that_differs_is_said(sent, other, about, words):
    sent.write_bytes(forged(sent.read_bytes(), **about))
    assert words in refused(other, str(sent), "-m", model_of(other))


def test_other_model_files_are_refused_and_said(sent, new_home, tiny_llama):
    home = new_home()
    home.ours("default", str(tiny_llama(seed=5)))
    line = refused(home, str(sent), "-m", model_of(home))
    assert "can't be used here: model files is '" in line
    assert "mlx" not in line.partition("here:")[2]


def test_p7_an_odd_name_of_a_file_sets_up_no_terminal(warmed, other, tmp_path):
    home, system = warmed
    file = tmp_path / "a\x1b[31m b\udcff\x07"
    out, _ = home.llm("mlx-cached", "export", str(file), "-s", system)
    assert out.isprintable()
    assert "a\\x1b[31m b" in out
    assert file.exists()
    for arguments in (("export", str(file), "-s", system), ("import", str(file))):
        _, line = home.llm("mlx-cached", *arguments, status=1)
        assert line.isprintable()
        assert "a\\x1b[31m b" in line
    _, line = home.llm("mlx-cached", "export", str(tmp_path / "no\x07/a"), "-s", system, status=1)
    assert line.isprintable()


def test_a_model_that_is_not_said_or_not_here_is_refused(sent, other):
    assert "does not say of which model it is; give it with -m" in refused(other, str(sent))
    assert "org/none" in refused(other, str(sent), "-m", "org/none")


def test_p2_a_label_that_points_at_a_folder_is_not_followed(sent, other):
    content = sent.read_bytes()
    for label in (model_of(other), f"{model_of(other)}@{model_of(other)}", "served:mine", "~"):
        sent.write_bytes(forged(content, label))
        assert "does not say of which model it is" in refused(other, str(sent))


def test_a_file_that_is_damaged_or_too_large_is_refused(sent, other, tmp_path):
    cut = tmp_path / "cut"
    cut.write_bytes(sent.read_bytes()[:-1])
    cut.chmod(0o600)
    assert "cut: " in refused(other, str(cut), "-m", model_of(other))
    other.ours("settings", "--disk", "1000")
    line = refused(other, str(sent), "-m", model_of(other))
    assert "give it more with llm mlx-cached settings --disk" in line


@pytest.fixture
def mounted(other):
    """A function that puts a small file system in the place of that home's cache."""
    place = Path(other.ours("path")[0])
    place.mkdir(mode=0o700, parents=True, exist_ok=True)

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", f"mode=700,{options}", "tmpfs", place]
        if subprocess.run(command).returncode:
            pytest.skip("nothing can be mounted here")
        return place

    yield mount
    while os.path.ismount(place):
        subprocess.run(["umount", "-l", place], check=True)


def said_of_nothing_imported(home, file):
    """The one line in which a home says why nothing of a file is imported."""
    out, line = home.llm("mlx-cached", "import", str(file), "-m", model_of(home), status=1)
    assert (out, line.count("\n")) == ("", 0)
    return line


def contents(place):
    return {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


@needs_root
@pytest.mark.parametrize(
    ("in_use", "why"),
    [(False, "Read-only file system"), (True, "unable to open database file")],
    ids=["a new cache", "one in use"],
)
def test_p4_a_read_only_cache_takes_nothing_and_says_so(sent, other, mounted, in_use, why):
    place = mounted("size=20m")
    if in_use:
        other.llm("-m", "mlx-cached", *LIMIT, "Hello")
    before = contents(place)
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    line = said_of_nothing_imported(other, sent)
    assert line.startswith(f"Error: nothing of sent is imported: the disk cache in {place} is off")
    assert why in line
    assert contents(place) == before


@needs_root
@pytest.mark.parametrize(
    ("budget", "why"),
    [((), "free some of the disk"), (("--disk", "1GB"), "database or disk is full")],
    ids=["any budget", "1 GB"],
)
def test_p4_a_full_disk_takes_nothing_and_says_so(sent, other, mounted, budget, why):
    other.ours("settings", *budget)
    place = mounted("size=256k")
    with suppress(OSError), (place / "much").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    line = said_of_nothing_imported(other, sent)
    assert why in line
    assert [path for path in place.rglob("*") if path.name.endswith(".safetensors")] == []
    assert list(place.rglob(".tmp-*")) == []


@needs_root
def test_p4_a_cache_of_somebody_else_takes_nothing_and_says_so(sent, other):
    place = Path(other.ours("path")[0])
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chown(place, 65_534, 65_534)
    line = said_of_nothing_imported(other, sent)
    assert line.startswith("Error: nothing of sent is imported: ")
    assert line.endswith("belongs to user 65534; use a folder of your own")
    assert list(place.iterdir()) == []


def test_nothing_is_exported_of_what_is_not_there(warmed, other, tmp_path):
    home, system = warmed
    file = str(tmp_path / "none")
    (line,) = other.ours("export", file, "-s", system, status=1)[1].splitlines()
    assert line.startswith("Error: nothing of these ")
    (line,) = home.ours("export", file, "--span", "abcdefabcdef", status=1)[1].splitlines()
    assert "tree shows the ids" in line
    home.ours("export", file, status=2)
    home.ours("export", file, "--span", "12345678", "-s", system, status=2)
    assert not Path(file).exists()


def test_what_has_a_salt_leaves_and_comes_with_its_salt(bare_home, other, tiny_llama, tmp_path):
    bare_home.ours("default", str(tiny_llama()))
    bare_home.llm(*ASKED, "Hello", "-o", "cache_salt", "of mine")
    last = max(bare_home.told("tree"), key=lambda span: span["end"])
    file = str(tmp_path / "salted")
    for salt in ((), ("--cache-salt", "of others")):
        arguments = ("export", file, "--span", last["id"], *salt)
        assert "--cache-salt" in bare_home.ours(*arguments, status=1)[1]
    bare_home.ours("export", file, "--span", last["id"], "--cache-salt", "of mine")
    assert b"of mine" not in Path(file).read_bytes()
    other.ours("import", file, "-m", model_of(other), "--cache-salt", "of theirs")
    other.llm(*ASKED, "Hello")
    assert other.last()["details"]["cached"] == 0
    other.llm(*ASKED, "Hello", "-o", "cache_salt", "of theirs")
    assert other.last()["details"]["prefilled"] == 1


def test_a_host_writes_first_what_it_has_in_memory(bare_hosted_home, other, tiny_llama, tmp_path):
    home = bare_hosted_home
    home.ours("default", str(tiny_llama()))
    home.llm(*ASKED, "Hello")
    file = str(tmp_path / "sent")
    answer = home.last()
    told = home.told("export", file, "--response", answer["id"])
    assert told["tokens"] == answer["input_tokens"]
    other.ours("import", file, "-m", model_of(other))
    other.llm(*ASKED, "Hello")
    assert other.last()["details"]["prefilled"] == 1
