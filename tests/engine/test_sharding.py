"""A model's parts: what can't be cut is refused before anything is read, and none is held whole."""

import dataclasses
import json
import subprocess

import families
import forks
import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs
from tiny_models import write_tiny_llama

from llm_mlx_promptcache.engine.group import Group
from llm_mlx_promptcache.engine.sharding import StandIn, check, load_shard
from llm_mlx_promptcache.models.errors import ModelLoadError


def write_llama(folder, bits=None, **own):
    """A llama of a few megabytes, most of it in its layers, as mlx-lm writes it."""
    write_tiny_llama(folder, layers=2)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, **own}
    mx.random.seed(3)
    model = Model(ModelArgs.from_dict(config))
    if bits:
        config["quantization"] = {"group_size": 64, "bits": bits}
        nn.quantize(model, 64, bits)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# What MLX holds is counted for a whole process, in which other tests' threads may compute.
HELD = """
import gc, json, sys
import mlx.core as mx
from llm_mlx_promptcache.engine.group import Group
from llm_mlx_promptcache.engine.sharding import StandIn, load_shard
from llm_mlx_promptcache.models.layers import weights_in
folder, split, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
found = []
for rank in range(size):
    gc.collect()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    loaded = load_shard(folder, Group(rank, size, split), StandIn(rank, size))
    found.append((mx.get_peak_memory() - before, weights_in(loaded.model)))
    del loaded
print(json.dumps(found))
"""


def size_of(folder):
    return (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("split", "bits"), [("tensor", None), ("tensor", 4), ("pipeline", None)])
def test_no_rank_ever_holds_much_more_than_its_part(tmp_path, split, bits, size):
    folder = tmp_path / "m"
    if split == "pipeline":
        write_qwen(folder)
    else:
        write_llama(folder, bits)
    whole = size_of(folder)
    command = [forks.python(), "-c", HELD, str(folder), split, str(size)]
    told = subprocess.run(command, check=True, timeout=60, stdout=subprocess.PIPE).stdout
    for peak, part in json.loads(told):
        assert peak <= 0.7 * whole, f"{peak / whole:.2f} of the file"
        assert part <= (0.55 if size == 2 else 0.35) * whole


def write_qwen(folder):
    """A qwen2 in the place of the tiny llama: it has a pipeline."""
    write_tiny_llama(folder, layers=2)
    config = json.loads((folder / "config.json").read_text())
    family = families.BY_NAME["qwen2"].with_words(config["vocab_size"])
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 8}
    family = dataclasses.replace(family, own={**family.own, **sizes})
    model = family.build()
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps({**config, **family.config()}))
    return folder


def refusal(folder, group, reference=None):
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    with pytest.raises(ModelLoadError) as refused:
        check(reference or str(folder), folder, group)
    assert mx.get_peak_memory() - before < 1 << 16  # no weights
    return str(refused.value).replace(str(folder), "FOLDER")


def test_what_can_be_cut_is_not_refused_and_nothing_of_it_is_read(tmp_path):
    folder = write_llama(tmp_path / "m")
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    check(str(folder), folder, Group(0, 2))
    assert mx.get_peak_memory() - before < 1 << 16


HEADS = {
    "queries": (
        {"num_attention_heads": 3, "num_key_value_heads": 3},
        2,
        "num_attention_heads is 3",
    ),
    "keys": ({"num_attention_heads": 6, "num_key_value_heads": 3}, 2, "num_key_value_heads is 3"),
    "the default model": (
        {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64},
        2,
        "num_attention_heads is 9",
    ),
    "one head of keys": (
        {"num_attention_heads": 4, "num_key_value_heads": 1},
        2,
        "num_key_value_heads is 1",
    ),
    "three ranks": ({}, 3, "num_attention_heads is 4"),
}


@pytest.mark.parametrize(("own", "size", "what"), HEADS.values(), ids=HEADS)
def test_law_18_heads_that_do_not_divide_are_refused(tmp_path, own, size, what):
    folder = write_tiny_llama(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **own}))
    assert refusal(folder, Group(0, size)) == (
        f"the model in FOLDER can't be cut into {size} parts: its {what}, which {size} does not"
        " divide; take another number of ranks, or --split pipeline"
    )


def test_heads_of_a_text_model_inside_another_count_and_those_of_its_eyes_do_not(tmp_path):
    folder = write_tiny_llama(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    inside = {"text_config": {"linear_num_value_heads": 5}, "vision_config": {"num_heads": 7}}
    (folder / "config.json").write_text(json.dumps({**config, **inside}))
    assert "its linear_num_value_heads is 5" in refusal(folder, Group(0, 2))


def test_groups_of_quantised_weights_that_do_not_divide_are_refused(tmp_path):
    folder = write_llama(tmp_path / "m", bits=4, intermediate_size=192)
    told = refusal(folder, Group(0, 2))
    assert told.startswith("the model in FOLDER can't be cut by tensor into 2 parts: ")


def test_models_that_mlx_lm_does_not_cut_are_refused(tmp_path):
    folder = write_tiny_llama(tmp_path / "m")
    assert refusal(folder, Group(0, 2, "pipeline")) == (
        "the model in FOLDER can't be cut by pipeline into 2 parts: mlx-lm can't:"
        " mlx_lm.models.llama has none"
    )


def test_more_ranks_than_layers_are_refused(tmp_path):
    folder = write_qwen(tmp_path / "m")
    told = refusal(folder, Group(0, 9, "pipeline"))
    assert told.startswith(
        "the model in FOLDER can't be cut by pipeline into 9 parts: split [1, 1,"
    )


def test_an_adapter_is_refused(tmp_path):
    folder = write_tiny_llama(tmp_path / "m")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    told = refusal(folder, Group(0, 2), f"{folder}@{tmp_path}/adapter")
    assert "has an adapter, and a model that runs over several ranks can have none" in told


def test_a_part_that_can_not_be_cut_is_refused_in_the_same_words_while_it_is_loaded(tmp_path):
    folder = write_tiny_llama(tmp_path / "m")
    with pytest.raises(ModelLoadError, match="can't be cut by pipeline into 2 parts: mlx-lm can't"):
        load_shard(str(folder), Group(0, 2, "pipeline"), StandIn(0, 2))
