"""The reuse of a conversation by an answer: as metadata, and as a warning where it was lost."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from llm_mlx_promptcache.chat.generated import Generated
from llm_mlx_promptcache.engine.events import Finished, Reuse
from llm_mlx_promptcache.engine.notes import is_new_loss

from .messages import index_of

# The mark of LangChain's middleware on a message that is a summary of others.
SOURCE, SUMMED_UP = "lc_source", "summarization"


def cache_metadata(event: Finished, messages: Sequence[BaseMessage]) -> dict[str, Any]:
    """The tokens by where they came from, and the verdict: healthy, or lost, where and why."""
    reuse = _of_langchain(event.reuse, messages)
    return {
        "read": event.usage.cached,
        "from_memory": event.usage.cached - event.from_disk,
        "from_disk": event.from_disk,
        "prefilled": event.usage.prefilled,
        **reuse.plain(),
        "why": str(reuse),
    }


def warn_of_loss(event: Finished, messages: Sequence[BaseMessage]) -> None:
    """Warn once a conversation that a turn lost rows of the last one."""
    told = _of_langchain(event.reuse, messages)
    if not _is_meant(told, messages) and is_new_loss(event.reuse):
        warnings.warn(f"reuse {told} (told once a conversation)", stacklevel=2)


def recorded(record: Generated, event: Finished, messages: Sequence[BaseMessage]) -> Generated:
    """The record of an answer; an intended loss, which is not warned of, does not count as told.

    The next loss in its conversation is then the first to be told.
    """
    if record.asked is None or not event.reuse.warns:
        return record
    if not _is_meant(_of_langchain(event.reuse, messages), messages):
        return record
    return replace(record, asked=replace(record.asked, told=False))


def _is_meant(reuse: Reuse, messages: Sequence[BaseMessage]) -> bool:
    """True if the loss was intended: a summary replaced messages, or agents take turns.

    Agents that share a conversation (a supervisor's, a swarm's) have names, and each has a system
    prompt and tools of its own.
    """
    if reuse.reason in ("system", "tools"):
        return any(isinstance(one, AIMessage) and one.name for one in messages)
    if reuse.message is None or reuse.reason not in ("edited", "removed"):
        return False
    there = messages[max(0, reuse.message - 1) : reuse.message + 1]
    return any(one.additional_kwargs.get(SOURCE) == SUMMED_UP for one in there)


def _of_langchain(reuse: Reuse, messages: Sequence[BaseMessage]) -> Reuse:
    """The same, with the index that the message has in LangChain's list."""
    if reuse.message is None:
        return reuse
    return reuse._replace(message=index_of(messages, reuse.message))
