"""The process that stays between prompts, and the clients that reach it; clients import no MLX."""
