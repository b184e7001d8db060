"""The parameters of other chat models, as their packages have them.

As a script, where langchain-openai, langchain-ollama and langchain-community are installed, it
prints what other_chat_models.json has to record.
"""

from __future__ import annotations

import inspect
import json
import re
from importlib.metadata import version
from typing import Any


def _words(kind: Any) -> set[str]:
    """A model's own fields under each of their names."""
    from langchain_core.language_models import BaseChatModel

    fields = {k: f for k, f in kind.model_fields.items() if k not in BaseChatModel.model_fields}
    return {*fields, *(field.alias for field in fields.values() if field.alias)}


def found() -> dict[str, dict[str, Any]]:
    """By class: the package and version that it is from, and every word that it takes."""
    from langchain_community.chat_models import ChatMLX
    from langchain_community.llms import MLXPipeline
    from langchain_ollama import ChatOllama
    from langchain_openai import ChatOpenAI

    inner = re.findall(r'pipeline_kwargs\.get\(\s*"(\w+)"', inspect.getsource(MLXPipeline))
    return {
        "ChatOpenAI": _told("langchain-openai", _words(ChatOpenAI)),
        "ChatOllama": _told("langchain-ollama", _words(ChatOllama)),
        "ChatMLX": _told("langchain-community", _words(ChatMLX) | _words(MLXPipeline) | {*inner}),
    }


def _told(package: str, words: set[str]) -> dict[str, Any]:
    return {"package": package, "version": version(package), "words": sorted(words)}


if __name__ == "__main__":
    print(json.dumps(found(), indent=2))
