"""LangChain's chat model over llm_mlx_promptcache."""

from .chat_model import ChatMLXCached
from .errors import worth_retrying

__all__ = ["ChatMLXCached", "worth_retrying"]
