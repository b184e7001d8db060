"""`llm mlx-cached add`: what can't work is told at once; a GGUF file becomes a model."""

import json
import shutil

import gguf_files
import numpy as np
import pytest
from mlx.utils import tree_flatten
from test_model_commands import LIMIT, one_line

from llm_mlx_promptcache.models.loading import load_model

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}"


def parameters(model):
    return {name: np.array(one) for name, one in tree_flatten(model.parameters())}


@pytest.fixture
def gguf_file(tiny_llama, tmp_path):
    """A file of a tiny model, called with a space, and the folder of that model."""
    folder = tiny_llama()
    loaded = load_model(str(folder))
    config = {"head_dim": 16, "rope_theta": 10000.0, **loaded.config}
    values = gguf_files.values_of(config, folder, words="smollm", template=TEMPLATE)
    path = tmp_path / "My tiny.gguf"
    return gguf_files.write_gguf(path, values, gguf_files.tensors_of(loaded.model, config)), folder


def test_a_gguf_file_is_registered_as_what_it_is_converted_to(bare_home, gguf_file):
    path, folder = gguf_file
    said, told = bare_home.llm("mlx-cached", "add", str(path), "-a", "t")
    assert said.startswith("mlx-cached/My tiny (also: t) is ")
    made = said.partition(" is ")[2]
    assert made.startswith(str(bare_home.folder / "mlx" / "data" / "models" / "My-tiny-"))
    assert set(told.splitlines()) == {"Reading My tiny.gguf", "Converting My tiny.gguf (once)"}
    bare_home.llm("-m", "t", "Hello", *LIMIT)
    assert bare_home.last()["resolved_model"] == made
    kept, ours = (parameters(load_model(str(one)).model) for one in (folder, made))
    assert kept.keys() == ours.keys()
    assert all(np.array_equal(kept[name], ours[name]) for name in kept)
    # The same file under another name is not converted again.
    again = bare_home.told("add", str(path.rename(path.with_name("other.gguf"))))
    assert (again["model"], again["reference"]) == ("mlx-cached/other", made)
    said = bare_home.ours("remove", "other")[0].splitlines()
    assert said[1:] == [f"its converted files stay in {made}"]


def test_a_gguf_file_is_named_wherever_a_model_is_wanted(bare_home, gguf_file):
    path, _ = gguf_file
    for command in (("default",), ("download",), ("bench", "-m")):
        told = one_line(bare_home.ours(*command, str(path), status=1)[1])
        assert told.endswith(f"llm mlx-cached add '{path}' makes one of it")


def test_c7_what_can_not_work_is_not_added(bare_home, tiny_llama, tmp_path):
    # Beside the folders of other tests, some would be named as like it.
    folder = shutil.copytree(tiny_llama(), tmp_path / "small" / "lamp")
    before = bare_home.told("models")
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": None}))
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "broken.gguf").write_text("no model")
    for given, words in (
        (folder, "has no chat template: it is a base model"),
        (tmp_path, "holds no model: it has GGUF files"),
        (tmp_path / "notes.txt", "is a file, and a model is a folder"),
        (tmp_path / "broken.gguf", "broken.gguf can't be converted: it is no GGUF file"),
        (f"{folder}x", f"; did you mean '{folder}'"),
    ):
        assert words in one_line(bare_home.ours("add", str(given), status=1)[1])
    for arguments in (("/",), ("owner/x", "--name", ""), ("owner/x", "-a", " x")):
        assert " is not a name" in one_line(bare_home.ours("add", *arguments, status=1)[1])
    for name in ("../x", "/x", "x/", "a//b", "./x", "a/../b", "~", "~/x", "~somebody"):
        for option in ("--name", "-a"):
            told = bare_home.ours("add", "owner/x", option, name, status=1)[1]
            assert f"{name!r} is a path and no name" in one_line(told)
    told = bare_home.ours("add", "owner/x", "--name", "mlx-cached/x", status=1)[1]
    assert "give 'x'" in one_line(told)
    assert bare_home.told("models") == before
    assert folder.is_dir()


def test_a_model_of_a_hub_that_can_not_be_asked_is_added_and_that_is_told(bare_home):
    said, told = bare_home.ours("add", "somebody/a")
    assert said == "mlx-cached/a is somebody/a"
    assert told.startswith("the hub can't be asked about somebody/a now, so it is not checked: ")
    assert len(told.splitlines()) == 1
