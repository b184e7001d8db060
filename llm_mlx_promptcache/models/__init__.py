"""A model's files and what is found out about them: tokenizer, text, probes."""
