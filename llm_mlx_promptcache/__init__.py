"""Run language models with MLX and never compute the same prefix twice."""
