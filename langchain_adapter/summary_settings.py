"""Arguments of PrefixKeepingSummarization, checked when it is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from langchain.chat_models import init_chat_model
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable

CountTokens = Callable[[Sequence[BaseMessage]], int]

# A stand-in for the conversation in prompts that were written for LangChain's middleware.
_ABOVE: Final = "(the conversation above)"


def checked_counter(given: CountTokens | None) -> CountTokens | None:
    """The function that counts messages; ValueError if it can't be called."""
    if given is None or callable(given):
        return given
    raise ValueError(
        f"token_counter is {repr(given)[:60]}; give a function from messages to a number of"
        " tokens, or leave it out"
    )


def checked_model(model: Any) -> BaseChatModel | None:
    """The model that writes summaries, also found by its name; ValueError if it is none."""
    if isinstance(model, str):
        return init_chat_model(model)
    # A binding of a model stands for it, and has its `bind_tools`.
    if model is None or (isinstance(model, Runnable) and hasattr(model, "bind_tools")):
        return cast("BaseChatModel | None", model)
    raise ValueError(
        f"model is of the type {type(model).__name__}, and it must be a chat model or the name of"
        " one; left out, the agent's own writes the summaries"
    )


def question_of(prompt: str) -> str:
    """The question in a prompt, which LangChain's middleware would fill in; ValueError."""
    if not isinstance(prompt, str) or not prompt.strip():
        what = "empty" if isinstance(prompt, str) else "no text"
        raise ValueError(f"summary_prompt is {what}; give the question for a summary")
    if "{messages}" not in prompt:
        return prompt
    try:
        return prompt.format(messages=_ABOVE)
    except (LookupError, ValueError) as error:
        raise ValueError(
            "summary_prompt has braces beside {messages} that nothing stands for; double them, as"
            f" in '{{{{' and '}}}}' ({type(error).__name__}: {error})"
        ) from None
