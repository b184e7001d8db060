"""A rank's part of a model, loaded and put to work: rank 0's scheduler, and those who follow it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from ..cache.identity import Identity
from ..config import cache_folder
from ..engine.events import Loading
from ..engine.followers import FollowerParts, follow, rank_identity
from ..engine.group import GroupEnded
from ..engine.leading import Leader
from ..engine.mlx_group import connect
from ..engine.parts import LoadReport
from ..engine.pool import close_engines, share_out, shared_cache, works_ahead
from ..engine.ranks import Ranks
from ..engine.scheduler import Scheduler
from ..engine.sharding import check, load_shard
from ..models.errors import one_line
from ..models.here import folder_here
from ..models.identities import identify
from ..models.progress import BetweenSteps, unasked
from ..models.threads import leave_thread
from .lead import Lead
from .mlx_variables import mlx_variables
from .orders import GroupPlan, RankOrder


def load_group(lead: Lead, tell: Callable[[Loading], None]) -> Scheduler:
    """The scheduler of rank 0, once all ranks have their parts; ModelLoadError, GroupEnded."""
    started = time.perf_counter()
    plan = lead.plan
    folder = folder_here(plan.model)
    if folder is not None:  # the lead says so otherwise
        check(plan.model, folder, lead.group)
    ranks = lead.meet(tell)
    told = Loading(f"loading the model {plan.model} on {plan.size} ranks")
    tell(told)
    joined = _joined(ranks, plan, lead.ports)
    mine = _loaded(ranks, joined, plan.model, partial(tell, told))
    report = LoadReport(
        name=plan.model,
        seconds=time.perf_counter() - started,
        uncached=mine.uncached,
        ahead=works_ahead(),
        memory=mine.memory,
    )
    parts = Leader(ranks, joined).parts(mine.loaded, mine.identity, mine.cache, report)
    return Scheduler(mine.loaded, mine.identity, parts, report)


def follow_group(ranks: Ranks, order: RankOrder) -> None:
    """Load this rank's part, and do as rank 0 does until it closes; ModelLoadError, GroupEnded.

    What it owes the disk is written then.
    """
    try:
        joined = _joined(ranks, order.plan, order.ports)
        follow(ranks, joined, _loaded(ranks, joined, order.plan.model, unasked))
    except GroupEnded:
        raise
    except Exception as error:  # a full disk, above all
        raise ranks.fail(f"{_named(ranks)} failed: {one_line(error)}") from error
    close_engines()
    leave_thread()


def _joined(ranks: Ranks, plan: GroupPlan, ports: tuple[tuple[int, ...], ...]) -> Any:
    """MLX's own group, which the environment leads to."""
    with mlx_variables(plan, ranks.group.rank, ports):
        return connect(ranks)


def _loaded(ranks: Ranks, joined: Any, model: str, step: BetweenSteps) -> FollowerParts:
    """One rank's part in memory, with the cache of its process."""
    try:
        with ranks.loading():
            loaded = load_shard(model, ranks.group, joined, step=step)
            found = identify(loaded, cache_folder(), step)
    except Exception as error:
        raise ranks.fail(f"{_named(ranks)}: {error}") from error
    cache = shared_cache()
    memory = share_out(cache)
    identity = rank_identity(Identity(found.model, found.rows), ranks)
    return FollowerParts(loaded, identity, cache, model, found.uncached, memory)


def _named(ranks: Ranks) -> str:
    return f"rank {ranks.group.rank} ({ranks.name})"
