"""The model and the one thread that may touch MLX."""
