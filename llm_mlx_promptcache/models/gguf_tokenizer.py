"""The tokenizer in a GGUF file's metadata -> a tokenizer as transformers loads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

_CONTROL, _USER_DEFINED = 3, 4  # GGUF's token types of special tokens, and of others kept whole
# How Llama 3 and Qwen cut text into words; these differ in how many digits stand together.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class _Splitting(NamedTuple):
    """A kind of tokenizer's way to cut text: by its regex, or GPT-2's with digits one by one."""

    regex: str = ""
    composed: bool = False  # Unicode's NFC first
    whole: bool = False  # a word that is a token is that token, whatever merges say


_KINDS = {
    "smollm": _Splitting(),
    "llama-bpe": _Splitting(_WORDS % "{1,3}", whole=True),
    "qwen2": _Splitting(_WORDS % "", composed=True),
}
_UNNAMED = "smollm"  # of files from before they had names


def check_tokenizer(values: Mapping[str, Any]) -> None:
    """ValueError if a header's tokenizer is not among the known ones."""
    kind, split = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre")
    if kind not in (None, "gpt2"):
        raise ValueError(f"its tokenizer is of the kind {kind!r}, and only 'gpt2' is converted")
    if split is not None and split not in _KINDS:
        raise ValueError(f"its tokenizer is {split!r}, and not {', '.join(_KINDS)}")


def tokenizer_of(metadata: Mapping[str, Any]) -> Tokenizer:
    """Byte-level BPE with the splitting of its kind, special tokens kept whole."""
    split = _KINDS[metadata.get("tokenizer.ggml.pre", _UNNAMED)]
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=split.whole))
    if split.composed:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_cutters(split))
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata["tokenizer.ggml.token_type"].tolist()
    kept = [(token, kind) for token, kind in zip(tokens, types, strict=True)]
    special = [token for token, kind in kept if kind == _CONTROL]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    others = [token for token, kind in kept if kind == _USER_DEFINED]
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in others])
    return tokenizer


def token_ids(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The config's ids of special tokens: the start and ends of an answer, and padding."""
    found = {name: _id(metadata, name) for name in ("bos", "eos", "eot", "padding")}
    if found["eos"] is None:
        raise KeyError("tokenizer.ggml.eos_token_id")
    ends = list(dict.fromkeys(id for id in (found["eos"], found["eot"]) if id is not None))
    made = {
        "bos_token_id": found["bos"],
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
        "pad_token_id": ends[0] if found["padding"] is None else found["padding"],
    }
    return {name: id for name, id in made.items() if id is not None}


def tokenizer_config(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer's settings for transformers (tokenizer_config.json)."""
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    names = {"bos": "bos", "eos": "eos", "padding": "pad", "unknown": "unk"}
    ids = {short: _id(metadata, name) for name, short in names.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{short}_token": tokens[id] for short, id in ids.items() if id is not None},
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        "chat_template": metadata["tokenizer.chat_template"],
    }


def _cutters(split: _Splitting) -> list[Any]:
    if not split.regex:
        return [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    return [
        pre_tokenizers.Split(Regex(split.regex), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


def _id(metadata: Mapping[str, Any], name: str) -> int | None:
    """The id of a special token; None if the file names none. IndexError if no token has it."""
    found = metadata.get(f"tokenizer.ggml.{name}_token_id")
    if found is None:
        return None
    id = int(found.item())
    metadata["tokenizer.ggml.tokens"][id]
    return id
