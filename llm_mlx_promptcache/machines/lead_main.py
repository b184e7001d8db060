"""Rank 0's process: the resident host of one model over several machines.

`python -P -m llm_mlx_promptcache.machines.lead_main`, which `llm mlx-cached serve` starts.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

from ..host.main import failed, live
from ..host.place import host_place
from .orders import MOST_BYTES, OrderError, lead_order

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from ..engine.events import Loading
    from ..engine.scheduler import Scheduler
    from ..host.place import Place
    from ..host.server import Server
    from .lead import Lead
    from .orders import LeadOrder


def main() -> int:
    """Serve until it is stopped, or a rank is gone; the exit status."""
    try:
        order = lead_order(sys.stdin.buffer.readline(MOST_BYTES))
    except OrderError as error:
        return failed(str(error))
    return live(partial(host_place, order.name), partial(_server, order))


def _server(order: LeadOrder, place: Place, mine: Mapping[str, Any]) -> Server:
    from .group_server import GroupServer

    return GroupServer(place, mine, order, _load)


def _load(lead: Lead, tell: Callable[[Loading], None]) -> Scheduler:
    """Import what runs models only here, on the engine's thread: a host answers at once."""
    from .loading import load_group

    return load_group(lead, tell)


if __name__ == "__main__":
    sys.exit(main())
