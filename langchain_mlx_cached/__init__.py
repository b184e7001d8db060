"""LangChain's chat model with MLX, under the name to import; the code is in langchain_adapter."""

from typing import TYPE_CHECKING, Any

import langchain_adapter
from langchain_adapter import ChatMLXCached, worth_retrying

if TYPE_CHECKING:
    from langchain_adapter import PrefixKeepingSummarization as PrefixKeepingSummarization

__all__ = ["ChatMLXCached", "worth_retrying"]


def __getattr__(name: str) -> Any:
    """Import names from langchain_adapter when they are first used."""
    return getattr(langchain_adapter, name)
