"""Tiny random models on disk, complete and fast; tests get them through the fixture `tiny_llama`.

They answer nonsense, always the same one for a seed: what matters is that logits differ clearly.
"""

import dataclasses
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Each is one token, by way of all its beginnings; all other text is tokenized byte by byte.
WORDS = ("Ġthe", "Ġand", "Ġcapital", "Ġof", "system", "user", "assistant", "Hello", "Ġanswer")

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n'"
    " + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_tiny_llama(
    folder, *, layers=2, vocab=None, seed=0, context=2048, heads=4, hidden=64, special=()
):
    """Write a loadable float32 llama with `layers` layers and its tokenizer; returns the folder.

    Ids 0, 1, 2 are <|endoftext|>, <|im_start|>, <|im_end|> (the end of an answer). `vocab` is the
    model's; left out, it is the tokenizer's, so that each id that the model can say has a text.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer((*SPECIAL, *special))
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": 128,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": vocab or tokenizer.get_vocab_size(),
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
    }
    mx.save_safetensors(str(folder / "model.safetensors"), _weights(config, seed))
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(_tokenizer_config(context)))
    return folder


def write_family(folder, name, **own):
    """Write a random model of one of `families.FAMILIES`, with the tiny tokenizer."""
    import families

    write_tiny_llama(folder)
    config = json.loads((folder / "config.json").read_text())
    family = families.BY_NAME[name].with_words(config["vocab_size"])
    family = dataclasses.replace(family, own={**family.own, **own})
    weights = dict(tree_flatten(family.build().parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    merged = {**family.config(), "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(merged))
    return folder


def write_adapter(folder, model_folder, seed=0):
    """Write an adapter as mlx_lm.lora does, with random weights."""
    from mlx_lm.tuner.utils import linear_to_lora_layers

    from llm_mlx_promptcache.models.loading import load_model

    config = {"num_layers": 2, "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.1}}
    model = load_model(str(model_folder)).model
    linear_to_lora_layers(model, config["num_layers"], config["lora_parameters"])
    mx.random.seed(seed)
    weights = {
        name: mx.random.normal(value.shape)
        for name, value in tree_flatten(model.parameters())
        if name.endswith(("lora_a", "lora_b"))
    }
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    (folder / "adapter_config.json").write_text(json.dumps({"fine_tune_type": "lora", **config}))
    return folder


def _weights(config, seed):
    """Normal weights of spread 2/sqrt(inputs): twice the usual, so greedy choices are no ties."""
    random = np.random.default_rng(seed)
    weights = {}
    for name, array in tree_flatten(Model(ModelArgs.from_dict(config)).parameters()):
        if array.ndim == 1:
            weights[name] = mx.ones(array.shape)
        else:
            spread = 2 / array.shape[-1] ** 0.5
            weights[name] = mx.array(random.normal(0, spread, array.shape).astype(np.float32))
    return weights


def _tokenizer(special):
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = []
    for word in WORDS:
        for end in range(2, len(word) + 1):
            if word[:end] not in pieces:
                pieces.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return tokenizer


def _tokenizer_config(context):
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[1],
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[2],
        "unk_token": SPECIAL[0],
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "chat_template": CHAT_TEMPLATE,
    }
