"""Spans on the disk: files, the index beside them, and the code that keeps both right."""
