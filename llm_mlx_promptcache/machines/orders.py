"""Orders to a process of a group on its standard input, and a rank's words about itself.

One line of JSON each way: a secret is in no command line and in no environment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from ..engine.group import Backend, Split
from .hostfile import Hostfile, HostfileError, hostfile_of, hostfile_to_json

MOST_BYTES: Final = 1 << 21  # of a line: a hostfile, and a little
MARK: Final = "llm-mlx-promptcache rank "  # before what a rank says; login shells say other things


class OrderError(ValueError):
    """A process was given something that is no order of ours."""


class GroupPlan(NamedTuple):
    """The plan of a group: a model, the machines by rank, how it is split, what carries it.

    `model` is a folder or a hub id, `split` "tensor" or "pipeline".
    """

    model: str
    hosts: Hostfile
    split: Split
    backend: Backend

    @property
    def size(self) -> int:
        """The number of ranks."""
        return len(self.hosts.machines)


class LeadOrder(NamedTuple):
    """The order with which rank 0's process starts.

    `python` runs the ranks of other machines, `port` is the first that MLX listens on there, and
    `address` is where they reach this one. `keep` is how many seconds it stays idle, None for ever.
    """

    name: str
    plan: GroupPlan
    python: str
    port: int
    address: str
    keep: float | None = None


class RankOrder(NamedTuple):
    """The order to any other rank: who it is, where rank 0 listens, and the secret.

    `ports` are those that MLX listens on, of each rank one for each address.
    """

    plan: GroupPlan
    rank: int
    ports: tuple[tuple[int, ...], ...]
    address: tuple[str, int]
    secret: str


def order_to_line(order: LeadOrder | RankOrder) -> bytes:
    """An order as the line that is written to a process."""
    told = {**order._asdict(), "plan": _plan_to_json(order.plan)}
    return json.dumps(told).encode("ascii") + b"\n"


def lead_order(line: bytes) -> LeadOrder:
    """The order to rank 0; OrderError."""
    match _object(line):
        case {
            "name": str(name),
            "plan": plan,
            "python": str(python),
            "port": int(port),
            "address": str(address),
            "keep": None | int() | float() as keep,
        }:
            return LeadOrder(name, _plan(plan), python, port, address, keep)
    raise OrderError("what it was told is no order of a group")


def rank_order(line: bytes) -> RankOrder:
    """The order to a rank; OrderError."""
    match _object(line):
        case {
            "rank": int(rank),
            "ports": list(ports),
            "address": [str(ip), int(port)],
            "secret": str(secret),
            "plan": plan,
        }:
            made = RankOrder(_plan(plan), rank, _ports(ports), (ip, port), secret)
            if 0 < rank < made.plan.size == len(made.ports):
                return made
    raise OrderError("what it was told is no order of a rank")


def said(words: Mapping[str, Any]) -> bytes:
    """A rank's words about itself, as a line."""
    return f"{MARK}{json.dumps(words)}\n".encode("ascii")


def heard(line: bytes) -> Mapping[str, Any] | None:
    """A rank's words about itself; None for a line of anybody else."""
    text = line.decode("utf-8", "replace")
    if not text.startswith(MARK):
        return None
    try:
        told = json.loads(text.removeprefix(MARK))
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, Mapping) else None


def _object(line: bytes) -> Mapping[str, Any]:
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        told = None
    return told if isinstance(told, Mapping) else {}


def _plan_to_json(plan: GroupPlan) -> dict[str, Any]:
    hosts = hostfile_to_json(plan.hosts)
    return {**plan._asdict(), "hosts": hosts, "backend": plan.backend.value}


def _plan(told: Any) -> GroupPlan:
    match told:
        case {
            "model": str(model),
            "split": "tensor" | "pipeline" as split,
            "backend": str(backend),
            "hosts": hosts,
        }:
            try:
                return GroupPlan(model, hostfile_of(hosts), split, Backend(backend))
            except (HostfileError, ValueError) as error:
                raise OrderError(f"its plan can't be followed ({error})") from error
    raise OrderError("what it was told has no plan")


def _ports(told: list[Any]) -> tuple[tuple[int, ...], ...]:
    found = tuple(tuple(each) if isinstance(each, list) else () for each in told)
    if all(type(port) is int and 0 < port < 1 << 16 for each in found for port in each):
        return found
    raise OrderError("its ports are none")
