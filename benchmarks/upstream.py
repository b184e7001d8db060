"""The prefills of mlx-lm's server, played with its own `LRUPromptCache`.

It gets the same as from a client: text, rendered again each turn. What the template has no place
for, tools for one, is said where ours says it, so that both run the same prompt. The segments are
those of its `_tokenize` (mlx-lm 0.32.2, server.py): if the last message is the user's, the system
prompt, the rest, and a tail that opens the thinking; else one. At the end of each but the last it
keeps a copy of all layers, and at the end of an answer the layers themselves.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import LRUPromptCache, make_prompt_cache

from llm_mlx_promptcache.chat.mends import Dicts, mended
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.chat.rendering import render
from llm_mlx_promptcache.chat.tool_schemas import canonical_tools
from llm_mlx_promptcache.engine.chunks import ChunkPlanner
from llm_mlx_promptcache.models.chat_tokenizer import TemplateTokenizer

_TAIL = 11


class Upstream:
    """mlx-lm's server with one model; the answers are given, so that both sides say the same."""

    def __init__(self, model: Any, wrapper: Any) -> None:
        self._model = model
        self._wrapper = wrapper
        self._tokenizer = TemplateTokenizer(wrapper)
        self._cache = LRUPromptCache()

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any]) -> list[int]:
        """The ids of a request's prompt."""
        return self._ids(*self._said(messages, tools), True)

    def ask_anew(self, messages: Sequence[Message], tools: Sequence[Any]) -> int:
        """The prefill of a new process: the whole prompt, since it has no disk; runs nothing."""
        return len(self.prompt(messages, tools))

    def ask(self, messages: Sequence[Message], tools: Sequence[Any], answer: Sequence[int]) -> int:
        """Play one request; returns the number of its prompt's tokens that were prefilled."""
        turns, tools = self._said(messages, tools)
        prompt = self._ids(turns, tools, True)
        segments = self._segments(prompt, turns, tools)
        layers, rest = self._cache.fetch_nearest_cache("m", prompt)
        assert rest, "the server would end here: nothing is left to prefill"
        layers = layers or make_prompt_cache(self._model)
        done = len(prompt) - len(rest)
        for end, kind in segments:
            if end <= done:
                continue
            self._run(layers, prompt[done:end])
            done = end
            if end < len(prompt):
                self._cache.insert_cache("m", prompt[:end], copy.deepcopy(layers), cache_type=kind)
        self._run(layers, answer)
        self._cache.insert_cache("m", [*prompt, *answer], layers, cache_type="assistant")
        return len(rest)

    def _said(self, messages: Sequence[Message], tools: Sequence[Any]) -> tuple[Dicts, Any]:
        """The messages and tools that the template is given, as ours puts them."""
        mends = render(messages, self._tokenizer, fingerprint="", tools=tools).mends
        plain = [message.to_template() for message in messages]
        given = {"tools": canonical_tools(tools)} if tools else {}
        made, given = mended(plain, given, mends, self._tokenizer.prompt_form.example)
        return made, given.get("tools", ())

    def _ids(self, turns: Dicts, tools: Sequence[Any], prompt: bool) -> list[int]:
        more = {"tools": list(tools)} if tools else {}
        text = self._tokenizer.apply(turns, add_generation_prompt=prompt, **more)
        return self._tokenizer.encode(text)[0]

    def _segments(
        self, prompt: list[int], turns: Dicts, tools: Sequence[Any]
    ) -> list[tuple[int, str]]:
        """The end of each segment, and its type."""
        if turns[-1]["role"] != "user":
            return [(len(prompt), "assistant")]
        found, tail = [], len(prompt)
        system = [turn for turn in turns if turn["role"] == "system"]
        if system:
            other = self._ids([*system, {"role": "user", "content": ""}], tools, False)
            pairs = enumerate(zip(other, prompt, strict=False))
            end = next((at for at, (a, b) in pairs if a != b), 0)
            found += [(end, "system")] if 0 < end < len(prompt) else []
        if self._wrapper.has_thinking:
            start = self._wrapper.rfind_think_start(prompt, start=tail - _TAIL)
            tail = start if start >= 0 else tail
        if not found or found[-1][0] < tail:
            found.append((tail, "user"))
        return [*found, (len(prompt), "assistant")] if tail < len(prompt) else found

    def _run(self, layers: list[Any], ids: Sequence[int]) -> None:
        for start, end in ChunkPlanner().alone(len(ids)):
            self._model(mx.array([list(ids[start:end])]), cache=layers)
            mx.eval([layer.state for layer in layers])
