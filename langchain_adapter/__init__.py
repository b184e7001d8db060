"""LangChain's chat model over llm_mlx_promptcache."""
