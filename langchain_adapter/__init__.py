"""LangChain's chat model over llm_mlx_promptcache."""

from typing import TYPE_CHECKING, Any

from .chat_model import ChatMLXCached
from .errors import worth_retrying

if TYPE_CHECKING:
    from .summarization import PrefixKeepingSummarization as PrefixKeepingSummarization

__all__ = ["ChatMLXCached", "worth_retrying"]


def __getattr__(name: str) -> Any:
    """Import names that need more than langchain-core when they are first used."""
    if name != "PrefixKeepingSummarization":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from .summarization import PrefixKeepingSummarization
    except ImportError as error:
        raise ImportError(
            f"{name} needs langchain 1.4 or newer: pip install 'langchain>=1.4' ({error})"
        ) from error
    return PrefixKeepingSummarization
