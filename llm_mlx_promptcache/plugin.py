"""llm's hooks and nothing else; importing this file imports no MLX and no transformers."""
