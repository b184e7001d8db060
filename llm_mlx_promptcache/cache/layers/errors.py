"""Errors in a description of layers; importing this imports no MLX."""

from __future__ import annotations


class UnknownKind(ValueError):
    """A layout with a kind that nobody registers: of a missing plugin, or no kind at all."""
