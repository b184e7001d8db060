"""Checks of a model before its weights are loaded: it can't work, and what to do."""

import json
import struct

import pytest

from llm_mlx_promptcache.models import usable
from llm_mlx_promptcache.models.errors import ModelLoadError
from llm_mlx_promptcache.models.loading import load_model
from llm_mlx_promptcache.models.usable import check_folder


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path / "home"))


@pytest.fixture
def folder(tiny_llama):
    return tiny_llama()


def refused(folder):
    with pytest.raises(ModelLoadError) as caught:
        check_folder(folder)
    (line,) = str(caught.value).splitlines()
    return line


def changed(folder, name="config.json", **values):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_nothing_is_said_of_a_model_that_can_work(folder):
    assert check_folder(folder) == []


def test_a_folder_without_a_model_says_what_to_give(tmp_path, folder):
    assert refused(tmp_path).endswith(
        "it has no config.json; a model's folder has config.json, model*.safetensors and"
        " tokenizer.json"
    )
    inner = tmp_path / "in side"
    folder.rename(inner)
    assert refused(tmp_path).endswith(f"there is one in it: llm mlx-cached add '{inner}'")
    (tmp_path / "b.gguf").touch()
    (tmp_path / "a.gguf").touch()
    assert refused(tmp_path).endswith(f"can be added: llm mlx-cached add {tmp_path}/a.gguf")


def test_the_hubs_cache_of_a_model_is_the_model_of_that_name(tmp_path):
    held = tmp_path / "models--some--thing" / "snapshots"
    held.mkdir(parents=True)
    assert refused(held.parent).endswith("it is the hub's cache; llm mlx-cached add some/thing")


@pytest.mark.parametrize(
    "name", ["pytorch_model-00001-of-2.bin", "x.pth", "consolidated.safetensors"]
)
def test_weights_that_mlx_lm_does_not_read_are_named(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    line = refused(folder)
    assert f"has its weights in {name}, and mlx-lm reads model*.safetensors" in line
    assert "its conversion from mlx-community" in line


def test_weights_that_the_index_lists_must_be_there(folder):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    line = refused(folder)
    assert "model-00002-of-00002.safetensors is missing" in line
    assert "remove" not in line  # the folder is the user's own


@pytest.mark.parametrize("cut", [1, 100, 10_000])
def test_a_file_of_weights_that_is_cut_is_told_with_its_size(folder, cut):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    size = len(whole)
    assert f"has {size - cut} bytes and should have {size}; fetch it again" in refused(folder)
    path.write_bytes(whole + b"x")
    assert f"has {size + 1} bytes and should have {size}" in refused(folder)


def header(text):
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"x", bytes(8), b"\xff" * 64),
        *(header(b"[]"), header(b"{}") + b"x", header(b'{"a": 3}')),
        header(b'{"a": {"data_offsets": [0, "x"]}}'),
    ],
)
def test_what_is_no_file_of_weights_is_told(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    assert "fetch it again" in refused(folder)


def test_gits_pointer_to_weights_is_told(folder):
    (folder / "model.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n"
    )
    assert refused(folder).endswith("that was not fetched; run git lfs pull there")


def test_a_model_without_a_tokenizer_is_told(folder):
    (folder / "tokenizer.json").unlink()
    assert "it has no tokenizer (tokenizer.json)" in refused(folder)


def test_c4_a_base_model_is_told_at_once_and_before_its_weights_are_read(folder, monkeypatch):
    path = folder / "tokenizer_config.json"
    told = json.loads(path.read_text())
    template = told.pop("chat_template")
    path.write_text(json.dumps(told))
    line = refused(folder)
    assert "has no chat template: it is a base model" in line
    assert line.endswith(f"put that one's template into {folder}/chat_template.jinja")
    monkeypatch.setattr("llm_mlx_promptcache.models.loading._load_weights", None)
    with pytest.raises(ModelLoadError) as caught:
        load_model(str(folder))
    assert str(caught.value) == line
    (folder / "chat_template.jinja").write_text(template)
    assert check_folder(folder) == []


def test_a_kind_of_model_that_mlx_lm_has_not_is_told(folder):
    changed(folder, model_type="quokka")
    assert "is of the kind 'quokka', which mlx-lm" in refused(folder)
    changed(folder, model_type="llama", model_file="evil.py")
    assert "comes with code of its own (model_file), which is never run" in refused(folder)


def test_a_model_that_is_too_large_is_told_with_what_makes_it_smaller(folder, monkeypatch):
    size = (folder / "model.safetensors").stat().st_size
    monkeypatch.setattr(usable, "budget", lambda: size - 1)
    (line,) = check_folder(folder)
    name = f"{folder.name}-4bit"
    assert f"; mlx_lm.convert --hf-path {folder} --mlx-path {name} -q makes one of " in line
    monkeypatch.setattr(usable, "budget", lambda: size // 10)
    assert check_folder(folder)[0].endswith(", which is too large still")
    changed(folder, quantization={"group_size": 64, "bits": 4})
    assert check_folder(folder)[0].endswith("; take a smaller one")
