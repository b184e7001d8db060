"""The text of a conversation, and its relation to other renderings of the same template.

Everything is found by rendering: a place is where two renderings differ, never a string that is
searched for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from hashlib import blake2b
from typing import Any, Protocol

from .generated import canonical_json
from .memo import Prefixes, memo_of
from .mends import Mend, asked_again, mended
from .messages import Message
from .prompt import Fit, PromptForm, WordsLostError, fit
from .template_work import TemplateError, TooMuchWork

# They differ from the first character on, and in length.
_PROBES = ("Question?", "Another one.")
_ROLE_LIMIT = 12
_REASON_LIMIT = 200


class ChatTokenizer(Protocol):
    """A tokenizer and its chat template, as far as this room needs them."""

    stop_ids: frozenset[int]

    @property
    def prompt_form(self) -> PromptForm:
        """The mends for parts that the template has no place for."""

    def apply(
        self, messages: list[dict[str, Any]], *, add_generation_prompt: bool, **arguments: Any
    ) -> str:
        """The template's text of `messages`; raises what the template raises."""

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Ids of `text` with nothing added, and the character where each one ends."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens included."""


class Clock:
    """`strftime_now` for templates, at one moment; records whether it was called."""

    def __init__(self, moment: datetime) -> None:
        self.moment = moment
        self.asked = False

    def __call__(self, form: str) -> str:
        """The moment, in the template's format."""
        self.asked = True
        return self.moment.strftime(form)


class RenderedText:
    """The text of a conversation, the turns it was made of, and probes beside it."""

    def __init__(
        self,
        messages: Sequence[Message],
        tokenizer: ChatTokenizer,
        arguments: Mapping[str, Any],
        *,
        continued: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self._arguments = arguments
        self._continued = continued
        self._heads: dict[tuple[int, bool], str | None] = {}
        self.turns, self.text, self.mends = self._fitted(messages)
        self._messages = [turn.message for turn in self.turns]
        self.sentinel = _sentinel(self.text)
        if continued:
            self.text = self._begun(messages)
        else:
            self._ask_again()
            self._heads[len(self.turns), True] = self.text
        self.memo = memo_of(tokenizer)
        self.prefixes = Prefixes(self.text)
        mends = sorted(mend.value for mend in self.mends)
        self.keys = list(_chain(self._messages, {**arguments, "mends": mends}))
        if continued:
            self.keys[-1] += b"continued"  # its last turn has no end yet

    def _fitted(self, messages: Sequence[Message]) -> Fit:
        """The conversation as the template shows it; TemplateError if it does not."""
        form = self.tokenizer.prompt_form
        try:
            return fit(messages, self._arguments, self._prompt, form)
        except TooMuchWork:
            raise
        except WordsLostError as error:
            raise TemplateError(str(error)) from None
        except Exception as error:
            # `from None`: a template's traceback can show the conversation.
            raise TemplateError(_refusal(error, messages)) from None

    def _ask_again(self) -> None:
        """Make a template that begins no answer behind an answer begin one."""
        if self._messages[-1]["role"] != "assistant":
            return
        if self.text != self.probe(self._messages, prompt=False):
            return
        before, self.mends = self.mends, self.mends | {Mend.ASKED_AGAIN}
        text = self.probe(self._messages, prompt=True)
        said = [message["content"] or "" for message in self._messages]
        # Some templates (classifiers') show the last question alone.
        if text is None or text == self.text or any(w in self.text and w not in text for w in said):
            self.mends = before
        else:
            self.text = text

    def _begun(self, messages: Sequence[Message]) -> str:
        """The text up to where the last answer goes on; TemplateError if that can't be told."""
        text = self._whole(self._messages)
        if text is None:
            raise TemplateError(
                f"the model's chat template does not show where messages[{len(messages) - 1}]"
                " (role 'assistant') ends, so it can't be continued; leave continue_final out"
            )
        return text

    def head(self, count: int, *, prompt: bool) -> str | None:
        """The first `count` turns alone, with or without a prompt for an answer."""
        key = (count, prompt)
        if key not in self._heads:
            self._heads[key] = self.probe(self._messages[:count], prompt=prompt)
        return self._heads[key]

    def end_of(self, index: int, before: int) -> int:
        """The end of turn `index`, which begins behind `before`; 0 if that can't be told."""
        known = self.memo.get(self.keys[index], self.prefixes)
        if known is not None:
            return known[0]
        end = self._common(self.head(index + 1, prompt=False))
        if end <= before and index + 1 < len(self.turns):
            # Some templates write the last message in another way than one that is followed.
            changed = {**self._messages[index + 1], "content": self.sentinel}
            end = self._common(self.probe([*self._messages[: index + 1], changed], prompt=False))
        self.memo.put(self.keys[index], self.prefixes, end)
        return end

    def end_where_followed(self, index: int) -> int:
        """The end of turn `index` and of the next turn's opening; 0 if that can't be told."""
        following = self._messages[index + 1 : index + 2]
        if not following:
            return 0
        key = self.keys[index] + b"followed"
        known = self.memo.get(key, self.prefixes)
        if known is not None:
            return known[0]
        changed = {**following[0], "content": self.sentinel}
        end = self._common(self.probe([*self._messages[: index + 1], changed], prompt=False))
        self.memo.put(key, self.prefixes, end)
        return end

    def shared_system(self, count: int) -> int:
        """The number of characters that don't depend on the text behind the first `count` turns."""
        head = self._messages[:count]
        texts = [
            self.probe([*head, {"role": "user", "content": content}], prompt=True)
            for content in _PROBES
        ]
        if texts[0] is None or texts[1] is None:
            return 0
        return self._common(texts[0][: common_prefix(texts[0], texts[1])])

    def shared_later(self) -> int:
        """The number of characters that stay when the answer and another question have followed."""
        said = {"role": "assistant", "content": self.sentinel}
        answered = [*self._messages, said]
        if self._continued:
            last = self._messages[-1]
            answered = [*self._messages[:-1], {**last, "content": last["content"] + self.sentinel}]
        later = self.probe([*answered, {"role": "user", "content": _PROBES[0]}], prompt=True)
        return self._common(self.probe(answered, prompt=False) if later is None else later)

    def prompt_end(self, index: int) -> int | None:
        """The end of the prompt for the answer at `index`; None if it isn't in this text."""
        prompt = self.head(index, prompt=True)
        return len(prompt) if prompt is not None and self.text.startswith(prompt) else None

    def with_turn(self, index: int, changes: Mapping[str, Any], upto: int | None = None) -> str:
        """The text with parts of turn `index` changed; empty if the template refuses it."""
        changed = list(self._messages[:upto])
        changed[index] = {**changed[index], **changes}
        return (self._whole(changed) if upto is None else self.probe(changed, prompt=False)) or ""

    def extent(self, index: int, keys: Sequence[str]) -> tuple[int, int] | None:
        """The extent of a part of turn `index`; None if it is not shown as it is.

        `keys` are the names that templates may know the part by.
        """
        keys = [key for key in keys if key in self._messages[index]]
        changed = self.with_turn(index, dict.fromkeys(keys, self.sentinel))
        before, found, after = changed.partition(self.sentinel)
        start, end = len(before), len(self.text) - len(after)
        if not found or start > end:
            return None
        # A second sentinel would be in `after`, so it is refused here too.
        if not (self.text.startswith(before) and self.text.endswith(after)):
            return None
        # Templates trim; their other changes to an answer (thinking dropped) are theirs to decide.
        unchanged = self.text[start:end].strip() == self._messages[index][keys[0]].strip()
        return (start, end) if unchanged else None

    def probe(self, messages: list[dict[str, Any]], *, prompt: bool) -> str | None:
        """A rendering for our own use, so a template may refuse it: None."""
        try:
            return self._apply(messages, prompt=prompt)
        except TooMuchWork:
            raise  # the next would not end either
        except Exception:
            return None

    def _whole(self, messages: list[dict[str, Any]]) -> str | None:
        """The text of all turns, up to where the answer begins or goes on; None if it has none."""
        if not self._continued:
            return self.probe(messages, prompt=True)
        last, mark = messages[-1], f"{self.sentinel}end"
        more = {**last, "content": last["content"] + mark}
        text, found, rest = (self.probe([*messages[:-1], more], prompt=False) or "").partition(mark)
        return text if found and mark not in rest else None

    def _common(self, text: str | None) -> int:
        return 0 if text is None else common_prefix(text, self.text)

    def _apply(self, messages: list[dict[str, Any]], *, prompt: bool) -> str:
        if prompt and Mend.ASKED_AGAIN in self.mends:
            messages = asked_again(messages)
        made, arguments = mended(
            messages, self._arguments, self.mends, self.tokenizer.prompt_form.example
        )
        return self.tokenizer.apply(made, add_generation_prompt=prompt, **arguments)

    def _prompt(self, messages: list[dict[str, Any]], arguments: Mapping[str, Any]) -> str:
        wanted = not self._continued
        return self.tokenizer.apply(messages, add_generation_prompt=wanted, **arguments)


def _chain(messages: Sequence[dict[str, Any]], arguments: Mapping[str, Any]) -> Iterator[bytes]:
    """For each message, a digest of it, of all before it and of the template's arguments."""
    plain = {key: value for key, value in arguments.items() if not callable(value)}
    chain = blake2b(canonical_json(plain).encode(), digest_size=16)
    for message in messages:
        chain.update(canonical_json(message).encode())
        yield chain.digest()


def common_prefix(a: str, b: str) -> int:
    """The number of characters that `a` and `b` share at their starts, by halving."""
    low, high = 0, min(len(a), len(b))
    if a.startswith(b) or b.startswith(a):
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def common_suffix(a: str, b: str) -> int:
    """The number of characters that `a` and `b` share at their ends."""
    return common_prefix(a[::-1], b[::-1])


def _sentinel(text: str) -> str:
    """A word that is nowhere in the conversation, and that no filter changes."""
    number = 0
    while (word := f"answer{number}x") in text:
        number += 1
    return word


def _refusal(error: Exception, messages: Sequence[Message]) -> str:
    """One line with the template's own reason and the roles, without the conversation's text."""
    reason = str(error)
    for text in _said(messages):
        if len(text) > 3:
            reason = reason.replace(text, "...")
    reason = " ".join(reason.split()) or type(error).__name__
    if len(reason) > _REASON_LIMIT:
        reason = reason[:_REASON_LIMIT] + "..."
    roles = [message.role for message in messages]
    listed = ", ".join(roles if len(roles) <= _ROLE_LIMIT else ["...", *roles[-_ROLE_LIMIT:]])
    return (
        f"the model's chat template refused the messages (roles: {listed}): {reason};"
        " send roles and an order that it takes, or use another model"
    )


def _said(messages: Sequence[Message]) -> list[str]:
    """Every text of the conversation, the longest first."""
    texts = {text for m in messages for text in (m.content, m.reasoning)}
    for message in messages:
        for call in message.tool_calls:
            texts |= set(re.findall(r"[^\"'\\{}\[\]]+", repr(dict(call.arguments))))
    return sorted(texts, key=len, reverse=True)
