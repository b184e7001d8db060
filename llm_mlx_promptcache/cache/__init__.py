"""Tokens and tensors; this room knows nothing of chat, llm or LangChain."""
