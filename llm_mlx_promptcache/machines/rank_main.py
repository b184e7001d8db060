"""A rank's process, from the line that tells it who it is to the end of its starter's."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any

from ..config import APP
from ..engine.group import Group, GroupEnded
from ..engine.meeting import meet
from ..engine.ranks import EXIT_STATUS
from ..host import log
from ..models.errors import ModelLoadError
from ..models.here import folder_here
from .orders import MOST_BYTES, OrderError, RankOrder, rank_order, said
from .versions import files_of, versions


def main() -> int:
    """Say what this is, then do as rank 0 does until it closes the group; the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o077)
    os.chdir("/")
    try:
        order = rank_order(sys.stdin.buffer.readline(MOST_BYTES))
    except OrderError as error:
        return _failed(str(error))
    threading.Thread(target=_outlive_nobody, name="starter", daemon=True).start()
    words = _hello(order)
    sys.stdout.buffer.write(said(words))
    sys.stdout.buffer.flush()
    if "error" in words:
        return _failed(str(words["error"]))
    log.take_over()
    return _follow(order)


def _hello(order: RankOrder) -> Mapping[str, Any]:
    told: dict[str, Any] = {"versions": versions()._asdict()}
    model = order.plan.model
    try:
        folder = folder_here(model)
    except (ModelLoadError, OSError) as error:
        return {**told, "error": str(error)}
    if folder is None:
        return {**told, "error": f"it has no model {model}; llm mlx-cached download {model}, there"}
    return {**told, "files": files_of(folder)}


def _outlive_nobody() -> None:
    """End where the starter ends, which holds the other end of standard input."""
    while os.read(0, 4096):
        pass
    os._exit(EXIT_STATUS)


def _follow(order: RankOrder) -> int:
    plan = order.plan
    group = Group(order.rank, plan.size, plan.split, plan.backend)
    name, secret = plan.hosts.machines[order.rank].ssh, bytes.fromhex(order.secret)
    try:
        ranks = meet(group, order.address, secret, name, on_end=_group_ended)
        from .loading import follow_group

        follow_group(ranks, order)
    except GroupEnded as error:
        return _failed(str(error))
    return 0


def _group_ended(why: str) -> None:
    """End this process, whatever its threads wait for."""
    _failed(why)
    os._exit(EXIT_STATUS)


def _failed(why: str) -> int:
    os.write(2, f"{APP}: {why}\n".encode("utf-8", "backslashreplace"))
    return 1
