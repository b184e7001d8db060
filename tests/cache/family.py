"""A family of mlx-lm as a tiny random model: what all of them share, and how one is built."""

import importlib
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

VOCAB_SIZE = 100
WINDOW = 8
SLIDE, FULL = "sliding_attention", "full_attention"

# What configs of several families have.
MIXED = [SLIDE, SLIDE, FULL]
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
GRANITE = {
    "logits_scaling": 1.0,
    "attention_multiplier": 0.3,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
}

# Where a config names the size of a table of tokens besides.
_TABLES = {"num_vocab", "vocab_size_per_layer_input"}

# mlx-lm's ModelArgs take the names they know and leave the rest, so one dictionary serves nearly
# all of them; a family names only what is its own.
COMMON: dict[str, Any] = {
    "attention_bias": False,
    "first_k_dense_replace": 1,
    "head_dim": 8,
    "hidden_size": 32,
    "intermediate_size": 48,
    "kv_lora_rank": 16,
    "layer_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 512,
    "mlp_bias": False,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "norm_eps": 1e-5,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_shared_experts": 1,
    "partial_rotary_factor": 0.5,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "routed_scaling_factor": 1.0,
    "shared_expert_intermediate_size": 32,
    "sliding_window": WINDOW,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "use_qk_norm": True,
    "v_head_dim": 8,
    "vocab_size": VOCAB_SIZE,
}


@dataclass(frozen=True)
class Family:
    """A model of mlx-lm and the config that makes it small."""

    name: str
    own: dict[str, Any] = field(default_factory=dict)
    inside: str | None = None  # the key under which the config of the text model lies
    scale: float = 2.0  # of the matrices: larger makes greedy choices surer, too large chaotic
    chunked: str | None = None  # why mlx-lm's own answer depends on where chunks end

    def config(self) -> dict[str, Any]:
        """All settings, as mlx-lm reads them."""
        config = {**COMMON, "model_type": self.name, **self.own}
        if self.inside is None:
            return config
        return {
            "model_type": self.name,
            "vocab_size": config["vocab_size"],
            self.inside: config,
        }

    def with_words(self, words: int) -> "Family":
        """The same model with so many tokens, in each of its tables.

        An id past a table's end is no error in MLX: it reads what lies behind, which changes.
        """
        sizes = {"vocab_size", *(_TABLES & self.own.keys())}
        return replace(self, own={**self.own, **dict.fromkeys(sizes, words)})

    def build(self) -> Any:
        """The model, the same weights every time."""
        module = importlib.import_module(f"mlx_lm.models.{self.name}")
        mx.random.seed(7)
        model = module.Model(module.ModelArgs.from_dict(self.config()))
        weights = [(name, self._woken(w)) for name, w in tree_flatten(model.parameters())]
        model.update(tree_unflatten(weights))
        model.eval()
        mx.eval(model.parameters())
        return model

    def _woken(self, weights: mx.array) -> mx.array:
        """Weights as they might be after training; nothing stays zero, so that no layer is dead."""
        if not mx.issubdtype(weights.dtype, mx.floating):
            return weights
        weights = weights.astype(mx.float32)
        low, high = weights.min().item(), weights.max().item()
        if low == high:
            return weights + 0.3 * mx.random.normal(weights.shape)
        return weights * self.scale if weights.ndim >= 2 else weights


def small(
    name: str,
    inside: str | None = None,
    scale: float = 2.0,
    chunked: str | None = None,
    **own: Any,
) -> Family:
    """One whose own settings are arguments."""
    return Family(name, own, inside, scale, chunked)
