"""llm from Python: the second turn computes only what is new.

Run it with `python examples/llm_from_python.py`, or give another of this plugin's models.
"""

from __future__ import annotations

import sys

import llm


def main(name: str = "mlx-cached") -> None:
    """Ask two questions in one conversation."""
    conversation = llm.get_model(name).conversation()
    for question in ("What is a bollard? Answer in one sentence.", "And a capstan?"):
        response = conversation.prompt(question, max_tokens=24)
        print(response.text())
        usage = response.usage()
        print(f"{usage.input} tokens, {usage.details['cached']} of them reused")


if __name__ == "__main__":
    main(*sys.argv[1:])
