"""LangChain's chat model over llm_mlx_promptcache."""

from .chat_model import ChatMLXCached

__all__ = ["ChatMLXCached"]
