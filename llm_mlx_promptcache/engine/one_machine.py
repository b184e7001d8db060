"""A scheduler whose process has the whole model; `leading.py` has the parts of one that leads."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..cache.identity import Identity
from ..cache.prompt_cache import PromptCache
from ..models.facts import model_facts
from ..models.loading import LoadedModel
from .batch_probe import BatchProof
from .batches import Batches
from .chunks import ChunkPlanner
from .draft_probe import DraftProof
from .drafting import ModelDrafting
from .kv import KVManager
from .parts import LoadReport, Parts
from .scheduler import Scheduler


def scheduler_here(
    loaded: LoadedModel,
    identity: Identity,
    cache: PromptCache,
    report: LoadReport = LoadReport(),  # noqa: B008 (a NamedTuple can't be changed)
    *,
    planner: ChunkPlanner | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Scheduler:
    """The scheduler of a model that this process has whole.

    `planner` sizes chunks otherwise than by the model's remembered speed, `clock` tells seconds.
    """
    model, fingerprint = loaded.model, identity.model
    kv = KVManager(model, cache, report.name, report.uncached, identity.rows)
    drafts = DraftProof(model, fingerprint, model_facts())
    parts = Parts(
        kv,
        Batches(model, BatchProof(model, fingerprint, model_facts()), drafts),
        ModelDrafting(drafts, kv),
        planner or ChunkPlanner(fingerprint),
        report.memory,
    )
    return Scheduler(loaded, identity, parts, report, clock=clock)
