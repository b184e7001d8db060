"""mlx-lm's tokenizer as the chat room wants it: templates to text, text to ids and places."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..chat.call_forms import plain_turns, tool_prompt, with_instructions
from ..chat.form_learning import learn_form
from ..chat.form_probes import TOOLS
from ..chat.forms import ContentAs, Form, NoForm, Reasoning, marks_in
from ..chat.hand_forms import GENERIC, hand_form
from ..chat.reasoning_learning import learn_reasoning
from ..chat.template import ChatTemplate
from ..chat.template_work import TooMuchWork
from ..models.detokenizer import TextDecoder


class TemplateTokenizer:
    """Implements `chat.transcript.ChatTokenizer` over mlx-lm's `TokenizerWrapper`."""

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper
        self._inner = wrapper._tokenizer  # the wrapper hides the offsets that encode needs
        self.stop_ids: frozenset[int] = frozenset(wrapper.eos_token_ids)
        self.text = TextDecoder(self._inner)
        template = str(getattr(self._inner, "chat_template", None))
        # Templates written in Python come with mlx-lm and transformers, and are theirs to render.
        own = type(self._inner).apply_chat_template
        self._is_jinja = (
            wrapper._chat_template is None and own is PreTrainedTokenizerBase.apply_chat_template
        )
        self._templates: dict[str, ChatTemplate] = {}
        # What its template calls the wish for reasoning.
        self.thinking_argument: str = getattr(wrapper, "_thinking_kwarg", "enable_thinking")
        self._shows_tools = wrapper.has_tool_calling or "tools" in template

    @cached_property
    def call_form(self) -> Form:
        """How the model writes calls: learned from its template once, or by hand."""
        learned: Form | None = None
        if self._wrapper.has_chat_template:
            try:
                learned = learn_form(self._probe)
            except NoForm:
                learned = None
        form = hand_form(learned, self._vocabulary, self._shown_tools())
        return replace(form, special=self._special([*form.literals, *GENERIC.literals]))

    @cached_property
    def reasoning(self) -> Reasoning | None:
        """The marks round the model's reasoning; None where it has none."""
        if not self._wrapper.has_chat_template or self.call_form.channels is not None:
            return None
        return learn_reasoning(self._probe, self._vocabulary, self.thinking_argument)

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        return dict(self._inner.get_vocab())

    def _probe(self, messages: list[dict[str, Any]], **arguments: Any) -> str:
        return self._apply(messages, arguments)

    def _shown_tools(self) -> str:
        """What the template shows of tools, and how it begins an answer."""
        asked = [{"role": "user", "content": "?"}]
        try:
            return self._apply(asked, {"tools": TOOLS, "add_generation_prompt": True})
        except Exception:
            return ""

    def _special(self, literals: Iterable[str]) -> tuple[tuple[str, int], ...]:
        """The marks among `literals` that are single tokens which no text is encoded to."""
        added = getattr(self._inner, "added_tokens_decoder", None) or {}
        found: dict[str, int] = {}
        for mark in [mark for literal in literals for mark in marks_in(literal)]:
            token = self._vocabulary.get(mark)
            # Grammars take every added token in pointed brackets for a special one.
            special = getattr(added.get(token), "special", False)
            if (
                token is not None
                and token in added
                and (special or (mark[0] == "<" and mark[-1] == ">"))
            ):
                found[mark] = token
        return tuple(found.items())

    def apply(
        self, messages: list[dict[str, Any]], *, add_generation_prompt: bool, **arguments: Any
    ) -> str:
        """The template's text; ValueError where the model has no chat template.

        Tools that the template has no place for become a system prompt, and calls and results
        become text.
        """
        if not self._wrapper.has_chat_template:
            raise ValueError("the model has no chat template; use one made for chat (instruct)")
        arguments["add_generation_prompt"] = add_generation_prompt
        if self._shows_tools:
            return self._apply([self._given(message) for message in messages], arguments)
        tools = arguments.pop("tools", None)
        plain = plain_turns(messages)
        if not tools:
            return self._apply(plain, arguments)
        try:
            return self._apply(with_instructions(plain, tool_prompt(tools), "system"), arguments)
        except TooMuchWork:
            raise
        except Exception:
            # Some templates take no system message.
            return self._apply(with_instructions(plain, tool_prompt(tools), "user"), arguments)

    def _given(self, message: dict[str, Any]) -> dict[str, Any]:
        """An answer that is only calls, with the content that its template wants there."""
        if not message.get("tool_calls") or message.get("content"):
            return message
        if self.call_form.input.content is ContentAs.NONE:
            return {**message, "content": None}
        return message

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
