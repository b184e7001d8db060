"""Spans in memory: the tree that finds them, the order of eviction, and their leases."""
