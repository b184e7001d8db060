"""An agent of LangChain's with a tool: each step computes only what is new.

Run it with `python examples/agent.py`, or give a hub id or a folder with a model.
"""

from __future__ import annotations

import sys
from typing import Literal

from langchain.agents import create_agent

from langchain_mlx_cached import ChatMLXCached


def tide(place: Literal["Dover", "Harwich"]) -> str:
    """Tell when the tide is high at a place."""
    return f"At {place} the tide is high at six."


def main(model: str = "default") -> None:
    """Let the agent call its tool, and answer."""
    # A small model seldom calls of its own accord; a large one needs no policy.
    chat = ChatMLXCached(model=model, max_tokens=200, tool_policy="call_first", max_calls=1)
    agent = create_agent(chat, [tide], system_prompt="You help sailors.")
    state = agent.invoke({"messages": [("human", "When is the tide high at Dover?")]})
    for message in state["messages"]:
        if message.type == "tool":
            print(message.content)
        elif message.type == "ai":
            usage = message.usage_metadata
            reused = usage["input_token_details"]["cache_read"]
            print(f"{usage['input_tokens']} tokens, {reused} of them reused")


if __name__ == "__main__":
    main(*sys.argv[1:])
