"""mlx-lm's tokenizer as the chat room wants it: templates to text, text to ids and places."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from ..chat.call_forms import CallForm, form_of, plain_turns, tool_prompt, with_instructions

# transformers lets templates have plain data only, so the moment comes as a table; a macro of the
# same name takes the place of its own clock.
_DATE_FORMS = [f"%{form}" for form in ("-d", "-m", *"aAbBcdHIjmMpSuUwWxXyY")]
_FROZEN = (
    "{%- macro strftime_now(format) -%}{%- set made = namespace(text=format) -%}"
    "{%- for form, text in frozen_clock | items -%}"
    "{%- set made.text = made.text.replace(form, text) -%}{%- endfor -%}"
    "{{- made.text -}}{%- endmacro +%}"
)


class TemplateTokenizer:
    """Implements `chat.transcript.ChatTokenizer` over mlx-lm's `TokenizerWrapper`."""

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper
        self._inner = wrapper._tokenizer  # the wrapper hides the offsets that encode needs
        self.stop_ids: frozenset[int] = frozenset(wrapper.eos_token_ids)
        # Only Jinja's: templates written in Python refuse arguments that they don't know.
        template = str(getattr(self._inner, "chat_template", None))
        self._clocked = "strftime_now" in template and wrapper._chat_template is None
        # What its template calls the wish for reasoning.
        self.thinking_argument: str = getattr(wrapper, "_thinking_kwarg", "enable_thinking")
        self._shows_tools = wrapper.has_tool_calling or "tools" in template

    @cached_property
    def call_form(self) -> CallForm:
        """How the model writes calls; found once, since it takes the whole vocabulary."""
        return form_of(self._wrapper)

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
            return self._apply(messages, arguments)
        tools = arguments.pop("tools", None)
        plain = plain_turns(messages)
        if not tools:
            return self._apply(plain, arguments)
        try:
            return self._apply(with_instructions(plain, tool_prompt(tools), "system"), arguments)
        except Exception:
            # Some templates take no system message.
            return self._apply(with_instructions(plain, tool_prompt(tools), "user"), arguments)

    def _apply(self, messages: list[dict[str, Any]], arguments: dict[str, Any]) -> str:
        arguments = dict(arguments)
        clock = arguments.pop("strftime_now", None)
        if self._clocked and clock is not None:
            template = self._inner.get_chat_template(None, arguments.get("tools"))
            arguments["chat_template"] = _FROZEN + template
            arguments["frozen_clock"] = {form: clock(form) for form in _DATE_FORMS}
        return str(self._wrapper.apply_chat_template(messages, tokenize=False, **arguments))

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
        text = self._inner.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(text)

    def text_of(self, token: int) -> str:
        """Text of one token, special or not."""
        return self.decode([token])
