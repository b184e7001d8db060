"""Weights, adapters and tokenizers that are replaced while they load: nothing of it is kept (P1).

Each change is made at one exact moment of a load, and the way back as well: what counts is what
was read, never what a digest says of a folder afterwards.
"""

import json
import logging
import os
import shutil

import pytest
from tiny_models import write_adapter

from llm_mlx_promptcache.cache import identity
from llm_mlx_promptcache.cache.identity import fingerprint
from llm_mlx_promptcache.cache.manifest import FilesChanged, Manifest
from llm_mlx_promptcache.chat.messages import Generated, Message
from llm_mlx_promptcache.engine import pool
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.models import facts, loading
from llm_mlx_promptcache.models.errors import ModelLoadError

WEIGHTS = "model.safetensors"


class Model:
    """A folder whose weights are those of seed 1, and another's weights to put in their place."""

    def __init__(self, folder, other):
        self.folder, self.other = folder, other
        self.weights = folder / WEIGHTS
        self.first = folder.parent / "first"
        shutil.copy(self.weights, self.first)

    def rename(self, source):
        new = self.folder / ".new"
        shutil.copy(source, new)
        new.replace(self.weights)

    def replaced(self):
        self.rename(self.other / WEIGHTS)

    def overwritten(self):
        with self.weights.open("r+b") as file:
            file.write((self.other / WEIGHTS).read_bytes())

    def moved_away(self):
        self.weights.rename(self.folder.parent / "away")
        shutil.copy(self.other / WEIGHTS, self.weights)

    def moved_back(self):
        (self.folder.parent / "away").replace(self.weights)

    def linked(self):
        self.weights.unlink()
        self.weights.symlink_to(self.other / WEIGHTS)

    def linked_back(self):
        self.weights.unlink()
        self.weights.symlink_to(self.first)

    def folder_away(self):
        self.folder.rename(self.folder.parent / "away")
        shutil.copytree(self.other, self.folder)

    def folder_back(self):
        shutil.rmtree(self.folder)
        (self.folder.parent / "away").rename(self.folder)

    def came(self):
        (self.folder / "added_tokens.json").write_text("{}")

    def went(self):
        (self.folder / "generation_config.json").unlink()

    def ask(self, **more):
        request = GenerationRequest(
            (Message("system", "You keep a lighthouse. " * 6), Message("user", "One?")),
            **{"max_tokens": 10, **more},
        )
        *_, last = pool.engine_for(str(self.folder)).generate(request)
        return last

    def fresh(self, **more):
        """As another process asks."""
        try:
            return self.ask(**more)
        finally:
            pool.close_engines()


@pytest.fixture
def model(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path / "home"))
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama(seed=1), folder)
    (folder / "generation_config.json").write_text("{}")
    yield Model(folder, tiny_llama(seed=2))
    pool.close_engines()


def around(monkeypatch, name, before=None, after=None):
    """Have a step of loading do something before and after it."""
    real = getattr(loading, name)

    def step(*given):
        if before is not None:
            before()
        made = real(*given)
        if after is not None:
            after()
        return made

    monkeypatch.setattr(loading, name, step)


def stored():
    held = pool.shared_cache().stats()
    return held["memory"]["spans"], held["disk"]["spans"]


CHANGES = {
    "before the weights are read": ("_load_weights", "replaced", None),
    "behind them": ("_load_weights", None, "replaced"),
    "in place": ("_load_weights", None, "overwritten"),
    "behind the tokenizer": ("_load_tokenizer", None, "replaced"),
    "there and back": ("_load_weights", "moved_away", "moved_back"),
    "a folder, there and back": ("_load_weights", "folder_away", "folder_back"),
    "a file that came": ("_load_tokenizer", "came", None),
    "a file that went": ("_load_tokenizer", None, "went"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_p1_of_what_changed_while_it_loaded_nothing_is_kept(model, monkeypatch, caplog, change):
    cold = model.fresh(use_cache=False)
    name, before, after = CHANGES[change]
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        around(patched, name, *(made and getattr(model, made) for made in (before, after)))
        answers = [model.ask(), model.ask()]
    assert [answer.usage.cached for answer in answers] == [0, 0]
    assert stored() == (0, 0)
    assert "files changed while it was loaded" in answers[0].why
    assert [one.message for one in caplog.records if "files changed" in one.message] == [
        f"{model.folder}: {answers[0].why}"
    ]
    pool.close_engines()
    for weights in (model.first, model.other / WEIGHTS):
        model.rename(weights)
        asked = model.fresh()
        assert asked.usage.cached == 0
        assert asked.ids == model.fresh(use_cache=False).ids
        assert (asked.ids == cold.ids) == (weights == model.first)
        assert model.fresh().usage.prefilled == 1  # and from here on it is kept


def test_p1_a_link_that_is_set_elsewhere_and_back(model, monkeypatch):
    model.linked_back()
    with monkeypatch.context() as patched:
        around(patched, "_load_weights", model.linked, model.linked_back)
        assert [model.ask().usage.cached for _ in range(2)] == [0, 0]
    assert stored() == (0, 0)
    pool.close_engines()
    assert model.fresh().usage.cached == 0
    assert model.fresh().usage.prefilled == 1


def test_p1_an_adapter_that_is_written_meanwhile(model, monkeypatch, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", model.folder)
    newer = write_adapter(tmp_path / "newer", model.folder, seed=3)
    weights = adapter / "adapters.safetensors"
    model.folder = f"{model.folder}@{adapter}"
    with monkeypatch.context() as patched:
        around(patched, "_adapted", after=lambda: shutil.copy(newer / weights.name, weights))
        assert [model.ask().usage.cached for _ in range(2)] == [0, 0]
    assert stored() == (0, 0)
    pool.close_engines()
    assert model.fresh().usage.cached == 0
    assert model.fresh().usage.prefilled == 1


def test_p1_a_digest_of_a_file_that_changes_is_not_remembered(model, monkeypatch):
    monkeypatch.setattr(identity, "BLOCK", 4096)
    files, known, real = Manifest.of([model.folder]), {}, identity.xxhash.xxh3_128

    class Hasher:
        def __init__(self):
            self._hasher = real()

        def update(self, block):
            self._hasher.update(block)
            if model.weights.read_bytes() == model.first.read_bytes():
                model.overwritten()

        def hexdigest(self):
            return self._hasher.hexdigest()

    monkeypatch.setattr(identity.xxhash, "xxh3_128", Hasher)
    with pytest.raises(FilesChanged, match=WEIGHTS):
        fingerprint(files, known)
    weights = [key for key in known if f":{model.weights.stat().st_ino}:" in key]
    assert weights == []


@pytest.mark.parametrize("content", ["[]", "{", '{"a": 1}', "[" * 100_000, "\xff", " " * (2 << 20)])
def test_damaged_digests_cost_one_reading(model, monkeypatch, content):
    monkeypatch.setattr(identity, "BLOCK", 4096)
    first = model.fresh()
    memo = pool.cache_folder() / "digests.json"
    whole = memo.read_text()
    memo.write_text(content)
    again = model.fresh()
    assert (again.fingerprint, again.usage.prefilled) == (first.fingerprint, 1)
    assert json.loads(memo.read_text()) == json.loads(whole)


def test_a_digest_that_is_none_is_not_believed(model, monkeypatch):
    monkeypatch.setattr(identity, "BLOCK", 4096)
    first = model.fresh()
    memo = pool.cache_folder() / "digests.json"
    memo.write_text(json.dumps(dict.fromkeys(json.loads(memo.read_text()), "x")))
    assert model.fresh().fingerprint == first.fingerprint


@pytest.mark.parametrize("name", ["extra.json", "tokenizer.json", "config.json", WEIGHTS])
@pytest.mark.parametrize("what", ["pipe", "device"])
def test_what_is_no_file_is_refused_by_name_before_anything_waits(model, name, what):
    path = model.folder / name
    path.unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    for load in (loading.load_model, lambda folder: loading.load_tokenizer(model.folder)):
        with pytest.raises(ModelLoadError, match=f"{name} is a pipe, a socket or a device"):
            load(str(model.folder))


def test_a_folder_and_a_link_to_nothing_are_no_part_of_a_model(model):
    model.fresh()
    (model.folder / "folder.json").mkdir()
    (model.folder / "nothing.json").symlink_to("/nowhere/at/all")
    (model.folder / "circle.json").symlink_to("circle.json")
    assert model.fresh().usage.prefilled == 1


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_file_without_end_is_refused(model, name):
    with (model.folder / name).open("ab") as file:
        file.truncate(1 << 43)
    with pytest.raises(ModelLoadError, match=f"{name} has {1 << 43} bytes"):
        loading.load_model(str(model.folder))


def test_a_file_that_can_not_be_read_is_told(model, monkeypatch):
    (model.folder / "extra.json").write_text("{}")
    real = os.open

    def refuse(path, *flags):
        if str(path).endswith("extra.json"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *flags)

    monkeypatch.setattr(identity.os, "open", refuse)
    answer = model.fresh()
    assert "can't all be read" in answer.why
    assert "extra.json" in answer.why


def test_p1_one_that_is_still_being_written_is_not_kept(model, monkeypatch):
    """Two changes within one tick of a file system's clock can't be told apart by their times."""
    naps = []
    clock = type("Clock", (), {"time_ns": staticmethod(model.weights.stat().st_ctime_ns.__int__)})
    clock.sleep = staticmethod(naps.append)
    monkeypatch.setattr("llm_mlx_promptcache.cache.manifest.time", clock)
    files = Manifest.of([model.folder])
    assert len(naps) == 1
    assert 0 < naps[0] <= 1.1
    with pytest.raises(FilesChanged):
        files.check()


@pytest.mark.parametrize("package", ["mlx", "mlx-lm"])
def test_p1_an_upgrade_keeps_replay_while_rows_start_anew(model, monkeypatch, package):
    """An answer whose text the tokenizer would write in fewer tokens, as its own ids have it."""
    first = model.fresh()
    tokenizer = loading.load_tokenizer(model.folder)
    ids = [tokenizer.encode(letter, add_special_tokens=False)[-1] for letter in "Hello"]
    assert len(tokenizer.encode("Hello", add_special_tokens=False)) < len(ids)

    def asked(fingerprint):
        kept = Generated.of([*ids, 2], "Hello", fingerprint)
        messages = (
            Message("system", "You keep a lighthouse. " * 6),
            Message("user", "One?"),
            Message("assistant", "Hello", kept),
            Message("user", "Two?"),
        )
        *_, last = pool.engine_for(str(model.folder)).generate(
            GenerationRequest(messages, max_tokens=4)
        )
        pool.close_engines()
        return last

    before = asked(first.fingerprint)
    assert before.usage.prompt > asked("another model").usage.prompt
    real = facts.version
    monkeypatch.setattr(facts, "version", lambda name: "99" if name == package else real(name))
    after = asked(first.fingerprint)
    assert after.fingerprint == first.fingerprint
    assert after.usage.prompt == before.usage.prompt
    assert (before.usage.cached > 0, after.usage.cached) == (True, 0)
    assert after.ids == before.ids
    assert asked(first.fingerprint).usage.prefilled == 1
