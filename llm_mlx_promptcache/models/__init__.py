"""A model's files and what is found out about them: tokenizer, text, probes."""

import os

# transformers says on stderr that it found no PyTorch, unless told before its import: whoever
# imports it here. In clients of a host too, whose environment is compared with the host's.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
