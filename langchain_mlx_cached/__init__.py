"""LangChain's chat model with MLX, under the name to import; langchain_adapter is what it is."""

from typing import TYPE_CHECKING, Any

import langchain_adapter
from langchain_adapter import ChatMLXCached, worth_retrying

if TYPE_CHECKING:
    from langchain_adapter import PrefixKeepingSummarization as PrefixKeepingSummarization

__all__ = ["ChatMLXCached", "worth_retrying"]


def __getattr__(name: str) -> Any:
    """What langchain_adapter imports when it is asked for."""
    return getattr(langchain_adapter, name)
