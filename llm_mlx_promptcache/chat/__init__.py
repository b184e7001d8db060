"""Text, templates and grammars; this room knows nothing of tensors."""
