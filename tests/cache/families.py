"""Tiny random models of mlx-lm's families, one small config each: a table, so it is long.

Used by test_families.py and by benchmarks/matrix.py.
"""

import importlib
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

WORDS = 100
WINDOW = 8
SLIDE, FULL = "sliding_attention", "full_attention"

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
    "vocab_size": WORDS,
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


def _family(
    name: str,
    inside: str | None = None,
    scale: float = 2.0,
    chunked: str | None = None,
    **own: Any,
) -> Family:
    return Family(name, own, inside, scale, chunked)


_GDN = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "full_attention_interval": 2,
    "num_hidden_layers": 4,
}
_DSA = {"index_head_dim": 16, "index_n_heads": 2, "index_topk": 16, "moe_layer_freq": 1}
_MAMBA2 = {
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "mamba_proj_bias": False,
    "ssm_state_size": 8,
    "conv_kernel": 4,
    "n_groups": 1,
    "use_bias": False,
    "use_conv_bias": True,
}
_LONGCAT = {
    "attention_method": "MLA",
    "zero_expert_type": "identity",
    "ffn_hidden_size": 48,
    "moe_topk": 2,
    "expert_ffn_hidden_size": 32,
    "zero_expert_num": 2,
    "num_layers": 2,
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
}
_GRANITE = {
    "logits_scaling": 1.0,
    "attention_multiplier": 0.3,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
}
_KDA = {
    "kda_layers": [1, 2],
    "full_attn_layers": [3],
    "num_heads": 4,
    "head_dim": 8,
    "short_conv_kernel_size": 4,
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_ROPE4 = {**_ROPE, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 16}
_MIXED = [SLIDE, SLIDE, FULL]
_LLAMA4 = {
    "attention_chunk_size": WINDOW,
    "interleave_moe_layer_step": 2,
    "intermediate_size_mlp": 48,
    "num_hidden_layers": 4,
    "rope_scaling": None,
    "use_qk_norm": True,
}

FAMILIES: tuple[Family, ...] = (
    # rows
    _family("llama"),
    _family("qwen3"),
    _family("glm4"),
    _family("Klear", decoder_sparse_step=1, mlp_only_layers=[]),
    _family(
        "afm7", hidden_dim=32, num_layers=4, num_kv_reuse_layers=2, num_heads=4, num_kv_heads=2
    ),
    _family("apertus", post_norm=False, qk_norm=True),
    _family("bailing_moe", num_experts=4),
    _family("cohere"),
    _family(
        "dbrx",
        d_model=32,
        n_layers=2,
        n_heads=4,
        ffn_config={"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
    ),
    _family("deepseek"),
    _family("dots1"),
    _family("ernie4_5", use_bias=False),
    _family("ernie4_5_moe", use_bias=False, moe_num_experts=4, moe_k=2),
    _family("exaone", num_layers=3),
    _family("gemma", scale=1.5),
    _family("gemma2", scale=1.5),
    _family("glm"),
    _family("glm4_moe", rope_scaling=None),
    _family("gpt2", n_ctx=512, n_embd=32, n_head=4, n_layer=3, n_positions=512),
    _family("gpt_bigcode", n_embd=32, n_layer=3, n_inner=64, n_head=4, n_positions=512),
    _family("gpt_neox", rotary_emb_base=10000, rotary_pct=0.5, num_key_value_heads=4),
    _family("gptj", n_embd=32, n_positions=512, n_head=4, rotary_dim=8, n_layer=3),
    _family("granite", **_GRANITE),
    _family("granitemoe", **_GRANITE),
    _family("helium"),
    _family(
        "hunyuan",
        moe_topk=2,
        num_shared_expert=1,
        use_mixed_mlp_moe=True,
        use_cla=True,
        cla_share_factor=2,
        num_hidden_layers=4,
        rope_scaling={"alpha": 1000.0, "factor": 1.0, "type": "dynamic"},
    ),
    _family(
        "hunyuan_v1_dense",
        rope_scaling={"alpha": 1000.0, "factor": 1.0, "type": "dynamic"},
    ),
    _family("internlm2", bias=False),
    _family("internlm3"),
    _family("lille-130m", block_size=64, n_embd=128, n_head=16, n_kv_heads=4, n_layer=2),
    _family("llama4_text", intermediate_size_mlp=48, no_rope_layers=[1, 1, 0]),
    _family("mimo"),
    _family("minicpm", dim_model_base=32, scale_depth=1.0, scale_emb=1.0),
    _family("minimax", shared_intermediate_size=32, rotary_dim=8),
    _family("mistral3", inside="text_config"),
    _family("mixtral"),
    _family("nanbeige", num_loops=2),
    _family("nanochat", num_key_value_heads=2),
    _family("nemotron", hidden_act="relu2"),
    _family("olmo2"),
    _family("olmoe"),
    _family(
        "openelm",
        num_transformer_layers=2,
        model_dim=32,
        ffn_dim_divisor=8,
        num_query_heads=[4, 4],
        num_kv_heads=[2, 2],
        ffn_multipliers=[1.0, 2.0],
    ),
    _family("phi", num_key_value_heads=4),
    _family("phi3"),
    _family(
        "phimoe",
        rope_scaling={
            "long_factor": [1.0] * 4,
            "short_factor": [1.0] * 4,
            "long_mscale": 1.0,
            "short_mscale": 1.0,
            "type": "longrope",
        },
    ),
    _family("phixtral", num_vocab=WORDS, model_dim=32, num_heads=4, num_layers=3, rotary_dim=4),
    _family("pixtral", inside="text_config"),
    _family("plamo", n_shared_head=2, num_key_value_heads=2),
    _family("qwen", kv_channels=8),
    _family("qwen2"),
    _family("qwen2_moe"),
    _family("qwen2_vl", inside="text_config"),
    _family("qwen3_moe", decoder_sparse_step=1, mlp_only_layers=[]),
    _family("qwen3_vl", inside="text_config"),
    _family("qwen3_vl_moe", inside="text_config", decoder_sparse_step=1, mlp_only_layers=[]),
    _family("seed_oss"),
    _family("smollm3"),
    _family("solar_open"),
    _family("stablelm", use_qkv_bias=False),
    _family("starcoder2"),
    _family("talkie"),
    _family("telechat3"),
    _family(
        "nemotron-nas",
        num_hidden_layers=3,
        block_configs=[
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.0}},
            {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.0}},
            {"attention": {"n_heads_in_group": 2}, "ffn": {"no_op": True}},
        ],
    ),
    # latent attention
    _family("deepseek_v2", topk_method="greedy", moe_layer_freq=1, rope_scaling={"factor": 2.0}),
    _family("deepseek_v3", moe_layer_freq=1),
    _family("glm4_moe_lite", moe_layer_freq=1),
    _family("kimi_k25", inside="text_config", moe_layer_freq=1),
    _family("kimi_vl", inside="text_config", moe_layer_freq=1),
    _family(
        "minicpm3",
        dim_model_base=32,
        scale_depth=1.0,
        scale_emb=1.0,
        rope_scaling={"short_factor": 1.0, "long_factor": 1.0},
    ),
    _family("mistral4", rope_parameters=_ROPE4),
    _family("youtu_llm"),
    # windows
    _family("afmoe", layer_types=_MIXED, num_dense_layers=1),
    _family("cohere2", sliding_window_pattern=3),
    _family("exaone4", rope_scaling=None, sliding_window_pattern="LLG"),
    _family("exaone_moe", layer_types=_MIXED, is_moe_layer=[False, True, True]),
    _family("gemma3", inside="text_config", sliding_window_pattern=3, query_pre_attn_scalar=8),
    _family("gemma3_text", sliding_window_pattern=3, query_pre_attn_scalar=8),
    _family(
        "gemma3n",
        inside="text_config",
        layer_types=[SLIDE, FULL, SLIDE, FULL],
        num_hidden_layers=4,
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=WORDS,
        hidden_size_per_layer_input=8,
        altup_num_inputs=2,
        altup_coef_clip=120.0,
        altup_correct_scale=True,
        altup_active_idx=0,
        laurel_rank=8,
        rope_local_base_freq=10000.0,
        final_logit_softcapping=30.0,
        activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0],
        intermediate_size=[48] * 4,
        query_pre_attn_scalar=8,
    ),
    _family(
        "gemma4",
        inside="text_config",
        layer_types=_MIXED,
        global_head_dim=8,
        num_kv_shared_layers=0,
        vocab_size_per_layer_input=WORDS,
        hidden_size_per_layer_input=8,
    ),
    _family(
        "gemma4_text",
        layer_types=[SLIDE, FULL, SLIDE, FULL],
        num_hidden_layers=4,
        global_head_dim=16,
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=WORDS,
        hidden_size_per_layer_input=8,
    ),
    _family("gpt_oss", layer_types=_MIXED),
    _family("iquestloopcoder", loop_window_size=WINDOW),
    _family("laguna", layer_types=_MIXED),
    _family(
        "mellum",
        layer_types=_MIXED,
        rope_parameters={SLIDE: _ROPE, FULL: _ROPE},
    ),
    _family(
        "mimo_v2_flash",
        hybrid_layer_pattern=[1, 1, 0],
        moe_layer_freq=[0, 1, 1],
        add_swa_attention_sink_bias=True,
        add_full_attention_sink_bias=False,
        sliding_window_size=WINDOW,
        topk_method="noaux_tc",
        scoring_func="sigmoid",
        layernorm_epsilon=1e-5,
        swa_rope_theta=10000.0,
        swa_num_attention_heads=4,
        swa_num_key_value_heads=2,
        swa_head_dim=8,
        swa_v_head_dim=8,
    ),
    _family(
        "ministral3",
        layer_types=_MIXED,
        rope_parameters=_ROPE4,
    ),
    _family("muse_glimmer", layer_types=_MIXED),
    _family("olmo3", layer_types=_MIXED),
    _family(
        "plamo3",
        chunked="mlx-lm masks W + 1 rows inside a chunk and keeps W between chunks",
        window_size=WINDOW,
        sliding_window_pattern=3,
    ),
    _family("spark2_5", layer_types=_MIXED, rope_parameters={SLIDE: _ROPE, FULL: _ROPE}),
    _family(
        "step3p5",
        layer_types=_MIXED,
        num_attention_groups=2,
        moe_num_experts=4,
        moe_top_k=2,
        share_expert_dim=32,
        moe_layers_enum="1,2",
    ),
    # recurrent and hybrid
    _family(
        "bailing_hybrid",
        layer_group_size=2,
        group_norm_size=2,
        num_key_value_heads=4,
        num_hidden_layers=4,
    ),
    _family("bailing_moe_linear", layer_group_size=2, group_norm_size=2, num_hidden_layers=4),
    # At scale 2 mlx-lm alone, in other chunks, is 1.3e-4 off with some BLAS.
    _family("bailing_moe_v3", scale=1.5, layer_group_size=2, num_hidden_layers=4),
    _family(
        "falcon_h1",
        mamba_d_conv=4,
        mamba_d_head=8,
        mamba_d_ssm=32,
        mamba_d_state=8,
        mamba_n_groups=1,
        mamba_n_heads=4,
        mamba_chunk_size=16,
        lm_head_multiplier=1.0,
    ),
    _family(
        "gear",
        layer_types=_MIXED,
        query_pre_attn_scalar=8,
    ),
    _family(
        "granitemoehybrid",
        **_GRANITE,
        layer_types=["mamba", "attention", "mamba"],
        shared_intermediate_size=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_proj_bias=False,
        mamba_d_state=8,
        mamba_d_conv=4,
        mamba_n_groups=1,
        mamba_conv_bias=True,
    ),
    _family(
        "jamba",
        attn_layer_offset=1,
        attn_layer_period=2,
        expert_layer_offset=1,
        expert_layer_period=2,
        mamba_d_conv=4,
        mamba_d_state=8,
        mamba_expand=2,
    ),
    # At scale 2 mlx-lm alone, in other chunks, is 1.2e-4 to 1.4e-4 off its own one-chunk run.
    _family(
        "kimi_k3",
        inside="text_config",
        scale=1.2,
        linear_attn_config=_KDA,
        num_experts_per_token=2,
    ),
    _family(
        "kimi_linear",
        scale=1.2,
        linear_attn_config=_KDA,
        model_max_length=512,
        num_experts_per_token=2,
    ),
    _family(
        "lfm2",
        conv_bias=False,
        conv_L_cache=3,
        block_dim=32,
        block_multiple_of=16,
        block_ffn_dim_multiplier=1.0,
        block_auto_adjust_ff_dim=False,
        full_attn_idxs=[1],
    ),
    _family(
        "lfm2-vl",
        inside="text_config",
        conv_bias=False,
        conv_L_cache=3,
        block_dim=32,
        block_multiple_of=16,
        block_ffn_dim_multiplier=1.0,
        block_auto_adjust_ff_dim=False,
        full_attn_idxs=[1],
    ),
    _family(
        "lfm2_moe",
        use_expert_bias=True,
        num_dense_layers=1,
        conv_bias=False,
        conv_L_cache=3,
        full_attn_idxs=[1],
    ),
    _family(
        "mamba",
        state_size=8,
        conv_kernel=4,
        use_bias=False,
        use_conv_bias=True,
        time_step_rank=4,
        intermediate_size=64,
    ),
    _family(
        "mamba2",
        **{**_MAMBA2, "num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1},
        time_step_limit=(0.001, 100.0),
        time_step_rank="auto",
    ),
    _family("nemotron_h", **_MAMBA2, hybrid_override_pattern=["M", "*", "M", "-"]),
    _family(
        "olmo_hybrid",
        **{**_GDN, "num_hidden_layers": 3},
        linear_allow_neg_eigval=True,
        layer_types=["linear_attention", FULL, "linear_attention"],
    ),
    _family(
        "plamo2",
        hidden_size_per_head=8,
        attention_window_size=512,
        mamba_d_state=8,
        mamba_num_heads=4,
        mamba_step=2,
        num_hidden_layers=4,
    ),
    _family("qwen3_5", inside="text_config", scale=1.5, **_GDN),
    _family("qwen3_5_moe", inside="text_config", scale=1.5, **_GDN),
    _family("qwen3_next", scale=1.5, **_GDN),
    _family(
        "recurrent_gemma",
        conv1d_width=4,
        logits_soft_cap=30.0,
        attention_window_size=WINDOW,
        num_key_value_heads=1,
        block_types=["recurrent", "recurrent", "attention"],
    ),
    _family(
        "rwkv7",
        a_low_rank_dim=8,
        v_low_rank_dim=8,
        gate_low_rank_dim=8,
        decay_low_rank_dim=8,
    ),
    # lists and odd ones
    _family("baichuan_m1", sliding_window_layers=[0, 2], conv_window=2),
    _family("deepseek_v32", **_DSA),
    _family(
        "glm_moe_dsa",
        **_DSA,
        topk_method="noaux_tc",
        scoring_func="sigmoid",
        rope_parameters=_ROPE,
    ),
    _family("llama4", inside="text_config", **_LLAMA4, num_experts_per_tok=1),
    _family("longcat_flash", **_LONGCAT),
    _family("longcat_flash_ngram", **_LONGCAT, ngram_vocab_size_ratio=7),
    _family(
        "minimax_m3_vl",
        inside="text_config",
        sparse_attention_config={
            "sparse_num_index_heads": 2,
            "sparse_index_dim": 8,
            "sparse_block_size": 4,
            "sparse_topk_blocks": 2,
            "sparse_local_block": 1,
            "sparse_attention_freq": [0, 1, 1],
        },
    ),
    _family(
        "deepseek_v41",
        num_hidden_layers=2,
        o_groups=2,
        o_lora_rank=8,
        compress_ratios=(0, 4),
        index_n_heads=2,
        index_head_dim=16,
        index_topk=8,
    ),
)

# What can't be held to law 1 on a CPU, and why; the matrix prints it.
LEFT_OUT = {
    "bitnet": "its layers are Metal kernels only",
    "muse_spark": "its layers are Metal kernels only",
    "olmo": "needs the package ai2-olmo",
    "phi3small": "mlx-lm's attention isn't causal (it adds its mask as 0 and 1), so chunks matter",
    "prism_hadamard_qwen35": "qwen3_5 with packed 2-bit weights",
}
BY_NAME = {family.name: family for family in FAMILIES}
