"""Pauses in which a user reads: schedulers that work ahead in them, and what that comes to."""

import dataclasses

import tiny_models
from readers import SYSTEM, steady_clock

from llm_mlx_promptcache.cache.identity import Identity
from llm_mlx_promptcache.cache.prompt_cache import PromptCache
from llm_mlx_promptcache.cache.trie import common_prefix
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.engine.one_machine import scheduler_here
from llm_mlx_promptcache.engine.parts import LoadReport
from llm_mlx_promptcache.engine.request import GenerationRequest

# Answers that are history begin in another way than they were asked for, as without their thoughts.
REWRITTEN = tiny_models.CHAT_TEMPLATE.replace(
    " + message['content']",
    " + ('and the past: ' if message['role'] == 'assistant' else '') + message['content']",
)
QUESTION = "What comes after two?"


def rewriting(loaded):
    """The same model with a template that rewrites its answers."""
    assert loaded.tokenizer.chat_template != REWRITTEN
    loaded.tokenizer.chat_template = REWRITTEN
    return loaded


def scheduler_over(loaded, cache=None, *, ahead=True, **more):
    """A scheduler that works ahead, or one that does not."""
    report = LoadReport(ahead=ahead)
    cache = cache if cache is not None else PromptCache("500MB")
    more = {"clock": steady_clock(), **more}
    return scheduler_here(loaded, Identity("model", "model"), cache, report, **more)


def pause(scheduler, steps=None):
    """Do all work that is left, or at most this many steps; returns the number of steps done."""
    done = 0
    while scheduler.ahead.left and done != steps:
        scheduler.ahead.step()
        done += 1
    return done


def asked(*said, system=True, **more):
    """A request; each turn is text or a message."""
    turns = [Message("user", one) if isinstance(one, str) else one for one in said]
    return GenerationRequest((*([SYSTEM] if system else []), *turns), **{"max_tokens": 24, **more})


def replied(finished):
    """The answer as front ends have it in their histories."""
    return Message(
        "assistant",
        finished.text,
        finished.generated(),
        reasoning=finished.reasoning,
        tool_calls=finished.tool_calls,
    )


def own_words(scheduler, request):
    """The number of a prompt's tokens in its last turn alone, which other words would change."""
    messages, last = list(request.messages), request.messages[-1].role
    for at in range(len(messages) - 1, -1, -1):
        if messages[at].role != last:
            break
        messages[at] = dataclasses.replace(messages[at], content="¿Que?")
    other = dataclasses.replace(request, messages=tuple(messages))
    ids, others = (scheduler._intake.transcript(one).ids for one in (request, other))
    return len(ids) - common_prefix(ids, others)
