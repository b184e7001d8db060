"""Law 18 over other splits: stages of a pipeline, three ranks, and stages of unequal kinds."""

import pytest
from rank_groups import RankGroup
from readers import request
from tiny_models import write_family
from whole_models import TURNS, Chat, Whole, same

SPLITS = {
    "rows in three stages": ("qwen2", {"num_hidden_layers": 4}, 3, "pipeline"),
    "states and rows in two stages": ("qwen3_5", {}, 2, "pipeline"),
    "states and rows, each cut": ("qwen3_5", {}, 2, "tensor"),
    "windows, each cut": ("gpt_oss", {}, 2, "tensor"),
    "three parts": (
        "llama",
        {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 96},
        3,
        "tensor",
    ),
}


@pytest.mark.soak
@pytest.mark.parametrize(("name", "own", "size", "split"), SPLITS.values(), ids=SPLITS)
def test_law_18_other_splits_answer_as_the_whole_model_does(tmp_path, name, own, size, split):
    folder = write_family(tmp_path / "model", name, **own)
    whole = Whole(folder, tmp_path / "whole")
    with RankGroup(folder, tmp_path, size, split) as group:
        group.ready()
        chat = Chat(whole, group)
        for said in TURNS[:2]:
            chat.say(said)
        asked = [request(f"Number {n}?", max_tokens=10, drafts=False) for n in range(3)]
        same(whole.ask(*asked), group.ask(*asked))
        group.close()
    whole.close()
    whole.restart()
    with RankGroup(folder, tmp_path, size, split) as group:
        chat.group = group.ready()
        assert chat.say(TURNS[2]).usage.cached > 0
        group.close()
