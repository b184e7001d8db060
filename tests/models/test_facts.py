"""Facts about models: shared across processes, apart by model and version, never trusted."""

import json
import os
import random
import subprocess
import sys

import pytest

from llm_mlx_promptcache.models import facts
from llm_mlx_promptcache.models.facts import ModelFacts

MODEL, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "facts.json"


def test_a_fact_is_remembered_by_model_and_kind(path):
    found = ModelFacts(path)
    assert found.get(MODEL, "batch") is None
    found.put(MODEL, "batch", {"together": True})
    found.put(MODEL, "speed", [1, 2.5])
    for one in (found, ModelFacts(path)):  # the second as another process reads it
        assert one.get(MODEL, "batch") == {"together": True}
        assert one.get(MODEL, "speed") == [1, 2.5]
        assert one.get(OTHER, "batch") is None
    found.put(MODEL, "batch", False)
    assert found.get(MODEL, "batch") is False
    assert ModelFacts(path).get(MODEL, "batch") is False


def test_another_process_has_it(path):
    ModelFacts(path).put(MODEL, "batch", "yes")
    code = (
        "import sys; from pathlib import Path\n"
        "from llm_mlx_promptcache.models.facts import ModelFacts\n"
        f"print(ModelFacts(Path(sys.argv[1])).get({MODEL!r}, 'batch'))"
    )
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert run.stdout.strip() == "yes", run.stderr


@pytest.mark.parametrize("package", ["mlx", "mlx-lm"])
def test_another_version_or_device_asks_again(path, monkeypatch, package):
    ModelFacts(path).put(MODEL, "batch", True)
    real = facts.version
    with monkeypatch.context() as patched:
        patched.setattr(facts, "version", lambda name: "99" if name == package else real(name))
        assert ModelFacts(path).get(MODEL, "batch") is None
    with monkeypatch.context() as patched:
        patched.setattr(facts.mx, "device_info", lambda _: {"device_name": "another"})
        assert ModelFacts(path).get(MODEL, "batch") is None
    assert ModelFacts(path).get(MODEL, "batch") is True


def test_what_is_no_fingerprint_is_not_remembered(path):
    found = ModelFacts(path)
    for name in ("", "tiny", "A" * 64, "a" * 63, "a" * 64 + "\n"):
        found.put(name, "batch", True)
        assert found.get(name, "batch") is None
    assert not path.exists()


def test_the_file_is_its_owners_alone(path):
    ModelFacts(path).put(MODEL, "batch", True)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert list(path.parent.iterdir()) == [path]
    path.chmod(0o666)
    assert ModelFacts(path).get(MODEL, "batch") is None


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_what_is_no_plain_file_is_as_if_absent(path, kind):
    path.parent.mkdir(mode=0o700)
    if kind == "pipe":
        os.mkfifo(path, 0o600)
    elif kind == "folder":
        path.mkdir(0o700)
    else:
        ModelFacts(path.with_name("elsewhere")).put(MODEL, "batch", True)
        path.symlink_to(path.with_name("elsewhere"))
    found = ModelFacts(path)
    assert found.get(MODEL, "batch") is None
    found.put(MODEL, "batch", True)
    assert found.get(MODEL, "batch") is True


def test_without_a_folder_it_is_remembered_in_the_process(tmp_path):
    (tmp_path / "file").write_text("in the folder's place")
    found = ModelFacts(tmp_path / "file" / "facts.json")
    found.put(MODEL, "batch", True)
    assert found.get(MODEL, "batch") is True


def test_the_oldest_facts_go(path):
    found = ModelFacts(path)
    names = [f"{number:064x}" for number in range(600)]
    for name in names[:20]:
        found.put(name, "batch", True)
    _, kind, environment, value, _ = json.loads(path.read_text())["facts"][0]
    path.write_text(facts._written({facts._Key(n, kind, environment): value for n in names}))
    late = ModelFacts(path)
    late.put(MODEL, "batch", False)
    kept = json.loads(path.read_text())["facts"]
    assert len(kept) == 512
    assert late.get(MODEL, "batch") is False
    assert late.get(names[-1], "batch") is True
    assert late.get(names[30], "batch") is None


@pytest.mark.parametrize("value", [{"a": float("nan")}, {1, 2}, "x" * 5000])
def test_what_can_not_be_kept_is_refused(path, value):
    with pytest.raises((ValueError, TypeError)):
        ModelFacts(path).put(MODEL, "batch", value)
    assert not path.exists()


GOOD = json.loads(facts._written({facts._Key("a" * 64, "batch", "env"): True}))["facts"][0]
CRAFTED = [
    "",
    "null",
    "[]",
    '{"format": 2}',
    '{"format": 2, "facts": {}}',
    '{"format": 2, "facts": [1, null, [], {}, [1, 2, 3, 4, 5], [[], {}, [], 1, 2]]}',
    '{"format": 2, "facts": ' + "[" * 100_000 + "]" * 100_000 + "}",
    json.dumps({"format": 1, "facts": [GOOD[:4]]}),
    json.dumps({"format": 3, "facts": [GOOD]}),
    json.dumps({"format": 2, "facts": [GOOD[:4]]}),
    json.dumps({"format": 2, "facts": [[*GOOD[:3], False, GOOD[4]]]}),  # damaged
    json.dumps({"format": 2, "facts": [[*GOOD[:4], None]]}),
    facts._written({facts._Key(*GOOD[:3]): "x" * 5000}),
    '{"format": 2, "facts": [["a", "b", "c", NaN, "d"]]}',
    " " * (5 << 20) + json.dumps({"format": 2, "facts": [GOOD]}),
]


@pytest.mark.parametrize("number", range(len(CRAFTED)))
def test_a_crafted_file_is_as_if_absent(path, monkeypatch, number):
    path.parent.mkdir(mode=0o700)
    path.write_text(CRAFTED[number])
    path.chmod(0o600)
    monkeypatch.setattr(facts, "environment", lambda: "env")
    found = ModelFacts(path)
    assert found.get(MODEL, "batch") is None
    found.put(MODEL, "batch", 7)
    assert ModelFacts(path).get(MODEL, "batch") == 7


def test_a_flipped_bit_is_no_other_fact(path):
    found = ModelFacts(path)
    found.put(MODEL, "batch", {"together": True})
    whole = path.read_bytes()
    seed = random.randrange(1 << 30)
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(300):
        spoilt = bytearray(whole)
        spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
        path.write_bytes(spoilt)
        # A bit of an escape, a space or a digit's case may say the same.
        assert ModelFacts(path).get(MODEL, "batch") in (None, {"together": True})


def test_the_facts_of_this_process_lie_beside_its_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path))
    facts.model_facts().put(MODEL, "batch", True)
    assert (tmp_path / "cache" / "facts.json").is_file()
    assert facts.model_facts() is facts.model_facts()
