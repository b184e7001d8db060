"""mlx-lm's tokenizer as the chat room wants it: templates to text, text to ids and places."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from hashlib import blake2b
from importlib.metadata import version
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..chat.forms import Form, Reasoning
from ..chat.hand_forms import GENERIC
from ..chat.prompt import PromptForm
from ..chat.reasoning_learning import listed_reasoning
from ..chat.template import ChatTemplate
from .detokenizer import TextDecoder
from .facts import model_facts
from .template_profile import TemplateProfile, learn_profile, learner
from .vocabulary import Vocabulary


class TemplateTokenizer:
    """Implements `chat.rendered_text.ChatTokenizer` over mlx-lm's `TokenizerWrapper`."""

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper
        self._inner = wrapper._tokenizer  # the wrapper hides the offsets that encode needs
        self.stop_ids: frozenset[int] = frozenset(wrapper.eos_token_ids)
        self.text = TextDecoder(self._inner)
        # Templates written in Python come with mlx-lm and transformers, and are theirs to render.
        own = type(self._inner).apply_chat_template
        self._is_jinja = (
            wrapper._chat_template is None and own is PreTrainedTokenizerBase.apply_chat_template
        )
        self._templates: dict[str, ChatTemplate] = {}
        # The template's own name for the argument that turns reasoning on.
        self.thinking_argument: str = getattr(wrapper, "_thinking_kwarg", "enable_thinking")

    @cached_property
    def call_form(self) -> Form:
        """The model's form of calls: learned from its template once, or written by hand."""
        form = self.profile.call_form(self._vocabulary)
        form = replace(form, end=self._without_stop(form.end))
        return replace(form, special=self._special([*form.literals, *GENERIC.literals]))

    @cached_property
    def reasoning(self) -> Reasoning | None:
        """The marks round the model's reasoning; None where it has none."""
        if not self._wrapper.has_chat_template or self.call_form.channels is not None:
            return None
        return self.profile.reasoning or listed_reasoning(self._vocabulary)

    @cached_property
    def prompt_form(self) -> PromptForm:
        """The mends for features that the template lacks, among them the generic form of calls."""
        return self.profile.prompt_for(self.call_form)

    @property
    def reasons(self) -> bool:
        """True if the model can write its reasoning apart from its answer."""
        channels = self.call_form.channels
        return self.reasoning is not None or bool(channels and channels.reasoning)

    @cached_property
    def thinking_switch(self) -> bool:
        """True if a prompt that wants reasoning differs from one that does not."""
        asked = [{"role": "user", "content": "?"}]
        try:
            on, off = (
                self._apply(asked, {self.thinking_argument: one, "add_generation_prompt": True})
                for one in (True, False)
            )
        except Exception:
            return False
        return on != off

    @cached_property
    def profile(self) -> TemplateProfile:
        """The profile of its template, learned once and stored under everything that decides it."""
        if not self._wrapper.has_chat_template:
            return TemplateProfile()
        facts, key, kind = model_facts(), self._template_digest(), f"template {learner()}"
        known = TemplateProfile.from_json(facts.get(key, kind))
        if known is None:
            known = learn_profile(self._probe, self.thinking_argument)
            with suppress(ValueError):  # too long to store: the next process learns it again
                facts.put(key, kind, known.to_json())
        return known

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self._inner)

    def _probe(self, messages: list[dict[str, Any]], **arguments: Any) -> str:
        return self._apply(messages, arguments)

    def _without_stop(self, end: str) -> str:
        """The mark that ends calls, without the token that ends the answer."""
        stops = filter(None, map(self.text_of, self.stop_ids))
        return end[: min((at for stop in stops if (at := end.find(stop)) >= 0), default=len(end))]

    def _special(self, literals: Iterable[str]) -> tuple[tuple[str, int], ...]:
        """The tokens in `literals` that grammars treat as special: no text is encoded to them.

        They are marks, or parts of marks.
        """
        added = getattr(self._inner, "added_tokens_decoder", None) or {}
        text = "\n".join(literals)
        marks = {str(one): (token, one.special) for token, one in added.items()}
        return tuple(
            (mark, token)
            for mark, (token, special) in marks.items()
            # Grammars treat every added token in angle brackets as special.
            if mark and mark in text and (special or (mark[0] == "<" and mark[-1] == ">"))
        )

    def _template_digest(self) -> str:
        """A digest of all that decides how conversations are rendered: the key of its facts."""
        template = getattr(self._inner, "chat_template", None)
        marks = {str(name): str(mark) for name, mark in self._inner.special_tokens_map.items()}
        thinks = [self.thinking_argument, self._wrapper.has_thinking]
        parts = [template, marks, thinks, self._is_jinja, type(self._inner).__name__]
        own = getattr(self._wrapper, "_chat_template", None)
        parts += [
            getattr(own, "__module__", "") if own is not None else "",
            version("transformers"),
        ]
        return blake2b(json.dumps(parts, default=str).encode(), digest_size=32).hexdigest()

    def apply(
        self, messages: list[dict[str, Any]], *, add_generation_prompt: bool, **arguments: Any
    ) -> str:
        """The template's text; ValueError where the model has no chat template."""
        if not self._wrapper.has_chat_template:
            raise ValueError("the model has no chat template; use one made for chat (instruct)")
        return self._apply(messages, {**arguments, "add_generation_prompt": add_generation_prompt})

    def _apply(self, messages: list[dict[str, Any]], arguments: dict[str, Any]) -> str:
        arguments = dict(arguments)
        clock = arguments.pop("strftime_now", None)
        if not self._is_jinja:
            return str(self._wrapper.apply_chat_template(messages, tokenize=False, **arguments))
        thinks = {self.thinking_argument: self._wrapper.has_thinking}
        if self.thinking_argument != "enable_thinking" and "enable_thinking" in arguments:
            arguments[self.thinking_argument] = arguments.pop("enable_thinking")
        given = {**self._inner.special_tokens_map, **thinks, **arguments}
        return self._template_for(given.get("tools")).render(messages, strftime_now=clock, **given)

    def _template_for(self, tools: Any) -> ChatTemplate:
        """The model's template; some have another one for tools."""
        source = self._inner.get_chat_template(None, tools)
        if source not in self._templates:
            name = str(getattr(self._inner, "name_or_path", "") or "this model")
            self._templates[source] = ChatTemplate(source, name)
        return self._templates[source]

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Ids of `text` as it stands, and where each one's characters end."""
        if not self._inner.is_fast:
            ids = self._inner.encode(text, add_special_tokens=False)
            # Without offsets no place inside is known, so the text has no boundary inside.
            return list(ids), [len(text)] * len(ids)
        encoded = self._inner(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoded["input_ids"]), [end for _, end in encoded["offset_mapping"]]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens included."""
        return self.text.decode(ids)

    def text_of(self, token: int) -> str:
        """Text of one token, special or not."""
        return self.text.text_of(token)
