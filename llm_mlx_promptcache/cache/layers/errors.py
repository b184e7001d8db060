"""What is wrong with a description of layers; importing this imports no MLX."""

from __future__ import annotations


class UnknownKind(ValueError):
    """A layout with a kind that nobody brings: a plugin's that is not installed, or no kind."""
