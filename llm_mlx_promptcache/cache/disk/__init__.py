"""Spans on the disk: files, the index beside them, and what keeps both right."""
