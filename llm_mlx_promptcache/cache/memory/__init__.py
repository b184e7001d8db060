"""Spans in memory: the tree that finds them, the order in which they go, and who holds them."""
