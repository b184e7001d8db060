"""The process that stays between prompts, and how front ends reach it; clients import no MLX."""
