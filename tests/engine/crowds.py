"""Requests over one prefix that come at the same time."""

import threading
from collections.abc import Sequence

from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.engine import Engine
from llm_mlx_promptcache.engine.events import Finished
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.models.chat_tokenizer import TemplateTokenizer

_RULES = (
    "Rule {}: a guest may keep a book from the reading room for {} days, and pays {} coins"
    " for each day after that.\n"
)
_THINGS = ("maps", "letters", "globes", "stamps", "diaries", "posters", "atlases", "quills")


def crowd(tokenizer: TemplateTokenizer, count: int, prefix: int) -> list[tuple[Message, ...]]:
    """So many conversations, each with its own question, over one prefix of at least that size."""
    rules = ""
    while len(tokenizer.encode(rules)[0]) < prefix:
        number = rules.count("\n") + 1
        rules += _RULES.format(number, number * 3 % 28 + 1, number * 7 % 40 + 2)
    system = Message("system", rules)
    asked = [f"{_THINGS[at % len(_THINGS)]}: what does rule {at + 1} say?" for at in range(count)]
    return [(system, Message("user", text)) for text in asked]


def together(engine: Engine, requests: Sequence[GenerationRequest]) -> list[Finished]:
    """Each asked by a thread of its own; their ends, in the order of the requests."""
    ends: dict[int, Finished] = {}

    def ask(at: int) -> None:
        ends[at] = one(engine, requests[at])

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [ends[at] for at in range(len(requests))]


def one(engine: Engine, request: GenerationRequest) -> Finished:
    """The end of one answer."""
    *_, last = engine.generate(request)
    assert isinstance(last, Finished)
    return last
