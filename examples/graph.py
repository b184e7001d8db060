"""A graph of LangGraph's with a checkpointer: another process continues it, with the same cache.

Run it twice with `python examples/graph.py`, or give a hub id or a folder with a model.
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from typing import Any

from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, MessagesState, StateGraph

from langchain_mlx_cached import ChatMLXCached


def main(model: str = "default") -> None:
    """Ask one more question in the conversation that conversation.db holds."""
    chat = ChatMLXCached(model=model, max_tokens=24)

    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [chat.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    with closing(sqlite3.connect("conversation.db", check_same_thread=False)) as database:
        app = graph.compile(checkpointer=SqliteSaver(database))
        question = ("human", "Name a kind of knot, and what it is for.")
        state = app.invoke({"messages": [question]}, {"configurable": {"thread_id": "ann"}})
    usage = state["messages"][-1].usage_metadata
    reused = usage["input_token_details"]["cache_read"]
    print(f"{usage['input_tokens']} tokens, {reused} of them reused")


if __name__ == "__main__":
    main(*sys.argv[1:])
