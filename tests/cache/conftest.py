"""A tiny random model, cold runs of it, and stores that every law is held against."""

import mlx.core as mx
import pytest
from mlx.utils import tree_map
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.llama import Model, ModelArgs

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.store import NullStore

VOCAB_SIZE = 100


@pytest.fixture(scope="session")
def model():
    """Three layers, float32; weights doubled, so that greedy choices are no near ties."""
    mx.random.seed(7)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    made = Model(
        ModelArgs(model_type="llama", rms_norm_eps=1e-5, vocab_size=VOCAB_SIZE, **sizes, **heads)
    )
    made.update(tree_map(lambda weights: weights * 2, made.parameters()))
    mx.eval(made.parameters())
    return made


@pytest.fixture(scope="session")
def run(model):
    """Run tokens through the model on given layers, or on new ones: (last logits, layers)."""

    def forward(tokens, layers=None):
        layers = make_prompt_cache(model) if layers is None else layers
        logits = model(mx.array([list(tokens)]), cache=layers)[0, -1]
        mx.eval(logits, [layer.state for layer in layers])
        return logits, layers

    return forward


@pytest.fixture(scope="session")
def greedy(run):
    """The next tokens, each the likeliest, after `tokens` run on given layers."""

    def generate(tokens, layers=None, count=16):
        answer = []
        for _ in range(count):
            logits, layers = run(tokens, layers)
            tokens = [int(mx.argmax(logits).item())]
            answer += tokens
        return answer

    return generate


@pytest.fixture(params=["memory", "disk"])
def store(request, tmp_path):
    """No store, and a folder."""
    return NullStore() if request.param == "memory" else DiskStore(tmp_path / "cache")
