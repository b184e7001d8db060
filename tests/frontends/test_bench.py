"""`llm mlx-cached bench` over a tiny model: counted tokens, and nothing of the user's touched."""

import json

import pytest
from click.testing import CliRunner

from llm_mlx_promptcache.commands.bench import bench
from llm_mlx_promptcache.config import cache_folder
from llm_mlx_promptcache.models.blas_preload import blas_in_use


@pytest.fixture
def run(own_cache):
    def run(*arguments, status=0):
        done = CliRunner().invoke(bench, arguments)
        assert done.exit_code == status, done.output
        return done.stdout

    return run


def test_the_table_tells_what_was_reused(run, tiny_llama):
    found = json.loads(run("-m", str(tiny_llama()), "--rules", "3", "--json"))
    first, turn, fork, disk = found["steps"]
    assert first["cached"] == 0
    assert first["prefilled"] == first["prompt"]
    # A turn prefills its own words; a second chat all after the system prompt.
    assert turn["cached"] > first["prompt"]
    assert 0 < fork["cached"] < first["prompt"]
    assert disk["cached"] == disk["prompt"] - 1
    for step in found["steps"]:
        assert step["same"]
        assert step["cached"] + step["prefilled"] == step["prompt"]
    for answer in found["drafts"]:
        assert answer["same"]
        assert 0 < answer["passes"] <= answer["passes_without"] == answer["tokens"]
    assert found["machine"]["versions"]["mlx-lm"]
    assert found["machine"]["blas"] == blas_in_use()


def test_the_users_cache_is_left_alone(run, tiny_llama):
    before = sorted(cache_folder().rglob("*"))
    told = run("-m", str(tiny_llama()), "--rules", "2")
    assert "| next turn |" in told
    assert "| prose |" in told
    assert sorted(cache_folder().rglob("*")) == before


def test_a_model_that_is_not_there_is_one_line(run):
    assert run("-m", "no model", status=1) == ""
