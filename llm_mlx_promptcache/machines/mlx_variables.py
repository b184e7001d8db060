"""The variables that MLX's own backends find each other by, as mlx.launch would set them.

mlx/_distributed_utils/launch.py puts them into a shell's words; here each rank sets its own, so
that none of them is in a command line. Importing this file imports no MLX.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ..config import create_private
from ..engine.group import Backend
from .hostfile import HostfileError, rdma_to_json
from .orders import GroupPlan

PORT: Final = 32323  # the first that mlx.launch takes


def ports_of(plan: GroupPlan, first: int = PORT) -> tuple[tuple[int, ...], ...]:
    """Ports for MLX to listen on: of each rank one for each address, and rank 0's for jaccl.

    Ranks of this machine, rank 0 above all, get free ones, others the next from `first`.
    HostfileError where an address of theirs is none of this machine.
    """
    found = []
    for rank, machine in enumerate(plan.hosts.machines):
        count = max(1, len(machine.ips))
        if machine.is_here or not rank:
            found.append(_free_ports(machine.ips or ("127.0.0.1",)))
        else:
            found.append(tuple(range(first, first + count)))
        first += count
    return tuple(found)


@contextmanager
def mlx_variables(
    plan: GroupPlan,
    rank: int,
    ports: tuple[tuple[int, ...], ...],
    environ: MutableMapping[str, str] = os.environ,
) -> Iterator[None]:
    """Set what `mx.distributed.init` reads, its file the owner's alone; the file goes afterwards.

    What it sets for this rank stays set: MLX reads some of it later.
    """
    environ.update(plan.hosts.envs)
    environ["MLX_RANK"] = str(rank)
    machines = plan.hosts.machines
    if plan.backend is Backend.RING:
        pairs = zip(machines, ports, strict=True)
        name = "MLX_HOSTFILE"
        told: list[object] = [
            [f"{ip}:{port}" for ip, port in zip(machine.ips, own, strict=True)]
            for machine, own in pairs
        ]
    else:
        name = "MLX_IBV_DEVICES"
        told = [[rdma_to_json(each) for each in machine.rdma] for machine in machines]
        environ["MLX_JACCL_COORDINATOR"] = f"{machines[0].ips[0]}:{ports[0][0]}"
        if plan.backend is Backend.JACCL_RING:
            environ["MLX_JACCL_RING"] = "1"
    with tempfile.TemporaryDirectory(prefix="mlx-") as folder:
        path = Path(folder) / "hosts.json"
        with os.fdopen(create_private(path), "w", encoding="ascii") as file:
            json.dump(told, file)
        environ[name] = str(path)
        yield


def _free_ports(ips: tuple[str, ...]) -> tuple[int, ...]:
    """Held together while they are looked for, so that no two are the same."""
    held = []
    try:
        for ip in ips:
            held.append(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            try:
                held[-1].bind((ip, 0))
            except OSError as error:
                raise HostfileError(
                    f"the hostfile has {ip} for a rank of this machine, which has no such address"
                ) from error
        return tuple(sock.getsockname()[1] for sock in held)
    finally:
        for sock in held:
            sock.close()
