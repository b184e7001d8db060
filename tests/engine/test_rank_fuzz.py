"""Ranks killed, stopped, cut off, unheard, misled or out of memory: no hang, no wrong answer."""

import os
import random
import secrets
import time

import pytest
from rank_groups import RankGroup
from whole_models import TURNS, Chat, Whole

from llm_mlx_promptcache.engine.request import GenerationRequest, Sampling
from llm_mlx_promptcache.engine.wire import to_json

# So many seconds more of it: RANK_FUZZ=1800 python -m pytest -m soak tests/engine/test_rank_fuzz.py
SECONDS = float(os.environ.get("RANK_FUZZ", "0"))
SILENCE = 8.0  # seconds: more than a busy machine keeps a rank waiting
NEVER_ENDS = Sampling(logit_bias=((2, -1000.0),))  # no answer is over before the fault
ERRORS = ("kill", "stop", "memory", "cut", "dark", "skew")


def a_fault(folder, disks, chat, random_):
    """One group that something happens to, at any pass of a turn that is asked again and again."""
    rank, error, after = random_.randrange(2), random_.choice(ERRORS), random_.randrange(3, 60)
    print(f"rank {rank}: {error} after {after} passes")
    own = {rank: {"fault": {"after": after, "error": error}}}
    if error == "skew":  # rank 0 tells the prompts: it can't be told others
        own = {1: {"skew": True}}
    through = random_.choice(("words", "model")) if error == "dark" else ""
    deadlines = {"silence": SILENCE, "step": 30.0}
    with RankGroup(folder, disks, own=own, through=through, deadlines=deadlines) as group:
        group.ready()
        asked = [
            GenerationRequest((*chat.messages, one), 200, NEVER_ENDS, drafts=False)
            for one in (chat.messages[1], chat.messages[-2])
        ]
        group.head.say(do="ask", requests=[to_json(one) for one in asked], gone=None)
        if error == "dark":
            time.sleep(after / 100)
            group.line.dark()
        told = group.head.line() if (rank, error) not in ((0, "kill"), (0, "stop")) else {}
        gone = rank if error in ("kill", "stop") else None
        for at, one in enumerate(group.ranks):
            if at == gone:
                continue
            told = told if at == 0 and told else one.line()
            assert "ended" in told, told
            print(told["ended"])
            assert one.wait() == 70


@pytest.mark.soak
def test_law_18_whatever_happens_to_a_rank_all_end_and_what_is_kept_is_right(tiny_llama, tmp_path):
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    random_, folder = random.Random(seed), tiny_llama(layers=4, hidden=128)
    whole = Whole(folder, tmp_path / "whole")
    until, rounds = time.monotonic() + SECONDS, 0
    while rounds < 3 or time.monotonic() < until:
        rounds += 1
        with RankGroup(folder, tmp_path) as group:
            chat = Chat(whole, group.ready(), same_counts=False)
            for said in TURNS:
                chat.say(f"{said} {rounds}")
            group.close()
        a_fault(folder, tmp_path, chat, random_)
    print(f"{rounds} rounds")
