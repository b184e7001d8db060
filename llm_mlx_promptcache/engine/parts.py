"""Parts: what a scheduler is made of where one process or several ranks run its model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .admission import RequestMemory
    from .batches import Batches
    from .chunks import ChunkPlanner
    from .drafting import Drafting
    from .kv import KVManager
    from .packing import PackingThread


class LoadReport(NamedTuple):
    """Other facts about a loaded model for its scheduler.

    `name` is its name for people, `seconds` the first answer's wait for it, `uncached` the reason
    why nothing of it may be kept; `ahead` allows next turns to be prefilled before they are asked.
    `memory` is the share of the requests of all models, None for this machine's. `packing` is done
    while nobody asks.
    """

    name: str = ""
    seconds: float = 0.0
    uncached: str = ""
    ahead: bool = False
    memory: RequestMemory | None = None
    packing: PackingThread | None = None


@dataclass(frozen=True)
class Parts:
    """The parts that differ: made in one_machine.py for a whole model, in leading.py for ranks.

    `memory` is what requests may take, None for this machine's share; `planner` sizes the chunks of
    prompts by the speed of what is loaded here.
    """

    kv: KVManager
    batches: Batches
    drafting: Drafting
    planner: ChunkPlanner
    memory: RequestMemory | None = None
