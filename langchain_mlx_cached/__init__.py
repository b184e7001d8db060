"""LangChain's chat model with MLX, under the name to import; langchain_adapter is what it is."""

from langchain_adapter import ChatMLXCached, worth_retrying

__all__ = ["ChatMLXCached", "worth_retrying"]
