"""A hostfile, as `mlx.distributed_config` writes it, read with suspicion; imports no MLX.

The two forms are those of mlx/_distributed_utils/common.py: a list of hosts, or an object with
`hosts`, `backend` and `envs`.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..cache.plain_files import read_plain
from ..engine.group import Backend

MOST_HOSTS: Final = 64
_MOST_BYTES: Final = 1 << 20
_MOST_PORTS: Final = 16  # of one host, and RDMA devices towards another
_MOST_ENVS: Final = 64
_SHOWN: Final = 80  # characters of a bad value
_MADE_BY: Final = "mlx.distributed_config writes one"

# What ssh takes for a host, and never for an option.
_SSH: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:%-]{0,254}", re.ASCII)
_DEVICE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
# Another variable would have a file of somebody else's say what runs here.
_ENV: Final = re.compile(r"(MLX_[A-Z0-9_]{1,60})=([ -~]{0,256})", re.ASCII)
_OWN_ENVS: Final = frozenset(
    {"MLX_RANK", "MLX_HOSTFILE", "MLX_IBV_DEVICES", "MLX_JACCL_COORDINATOR", "MLX_JACCL_RING"}
)
_HERE: Final = frozenset({"127.0.0.1", "localhost"})


class HostfileError(ValueError):
    """A hostfile that can't be used; the message names it, the value, and what to give."""


class Machine(NamedTuple):
    """One host: the name that ssh knows it by, its IPv4 addresses, and its RDMA devices.

    `rdma` has the devices towards each host of the file, none towards itself; or it is empty.
    """

    ssh: str
    ips: tuple[str, ...] = ()
    rdma: tuple[tuple[str, ...], ...] = ()

    @property
    def is_here(self) -> bool:
        """True if its rank is a process of this machine, started without ssh."""
        return self.ssh in _HERE


class Hostfile(NamedTuple):
    """The hosts by their ranks, the backend that the file names, and MLX's variables in it."""

    machines: tuple[Machine, ...]
    backend: Backend | None = None
    envs: tuple[tuple[str, str], ...] = ()


def read_hostfile(path: Path) -> Hostfile:
    """The hosts of a file; HostfileError."""
    try:
        text = read_plain(path, _MOST_BYTES)
    except OSError as error:
        raise HostfileError(f"{path} can't be read ({error.strerror})") from error
    except ValueError as error:
        raise HostfileError(f"{error}; {_MADE_BY}") from error
    try:
        data = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise HostfileError(f"{path} holds no JSON; {_MADE_BY}") from error
    try:
        return hostfile_of(data)
    except HostfileError as error:
        raise HostfileError(f"{path}: {error}") from None


def hostfile_of(data: Any) -> Hostfile:
    """The hosts that JSON tells of; HostfileError."""
    whole = data if isinstance(data, Mapping) else {"hosts": data}
    hosts = whole.get("hosts")
    if not isinstance(hosts, list):
        raise HostfileError(f"its hosts are {_shown(hosts)}; {_MADE_BY}")
    if not 2 <= len(hosts) <= MOST_HOSTS:
        raise HostfileError(f"it names {len(hosts)} hosts; give 2 to {MOST_HOSTS}")
    machines = tuple(_machine(f"hosts[{n}]", host, len(hosts)) for n, host in enumerate(hosts))
    return Hostfile(machines, _backend(whole.get("backend")), _envs(whole.get("envs", [])))


def fitting_backend(hosts: Hostfile, asked: Backend | None) -> Backend:
    """The backend that is asked for, else the file's, else ring; HostfileError if it can't serve.

    Of a file for a ring of RDMA devices, jaccl is that ring.
    """
    backend = asked or hosts.backend or Backend.RING
    if backend is Backend.JACCL and hosts.backend is Backend.JACCL_RING:
        backend = Backend.JACCL_RING
    every = list(enumerate(hosts.machines))
    if backend is Backend.RING:
        without = next((machine.ssh for _, machine in every if not machine.ips), None)
        if without is not None:
            raise HostfileError(
                f"{without!r} has no addresses (ips), which the ring backend needs; {_MADE_BY}"
            )
        return backend
    if not hosts.machines[0].ips:
        raise HostfileError(f"{hosts.machines[0].ssh!r} has no address (ips), which all others ask")
    for rank, machine in every:
        for other in _reached(rank, len(every), backend):
            if not machine.rdma or not machine.rdma[other]:
                raise HostfileError(
                    f"it lists no RDMA device from {machine.ssh!r} to"
                    f" {hosts.machines[other].ssh!r}, which {backend.value} needs; {_MADE_BY}"
                )
    return backend


def hostfile_to_json(hosts: Hostfile) -> dict[str, Any]:
    """The same as mlx writes it."""
    return {
        "backend": hosts.backend.value if hosts.backend else "",
        "envs": ["=".join(pair) for pair in hosts.envs],
        "hosts": [
            {
                "ssh": machine.ssh,
                "ips": list(machine.ips),
                "rdma": [rdma_to_json(devices) for devices in machine.rdma],
            }
            for machine in hosts.machines
        ],
    }


def _machine(where: str, host: Any, count: int) -> Machine:
    if not isinstance(host, Mapping):
        raise HostfileError(f"{where} is {_shown(host)}; give an object with ssh and ips")
    ssh = host.get("ssh")
    if not isinstance(ssh, str) or not _SSH.fullmatch(ssh):
        raise HostfileError(f"{where}.ssh is {_shown(ssh)}; give a name that ssh knows")
    ips = _items(f"{where}.ips", host.get("ips", []))
    addresses = tuple(_address(f"{where}.ips[{n}]", ip) for n, ip in enumerate(ips))
    rdma = host.get("rdma") or []
    if not isinstance(rdma, list) or len(rdma) not in (0, count):
        raise HostfileError(
            f"{where}.rdma is {_shown(rdma)}; give a device or null for each of the {count} hosts"
        )
    devices = tuple(_devices(f"{where}.rdma[{n}]", one) for n, one in enumerate(rdma))
    return Machine(ssh, addresses, devices)


def _address(where: str, ip: Any) -> str:
    """An address as MLX takes it: its ring parses a colon as the port's."""
    try:
        if isinstance(ip, str):
            return str(ipaddress.IPv4Address(ip))
    except ValueError:
        pass
    raise HostfileError(f"{where} is {_shown(ip)}; give an IPv4 address")


def _devices(where: str, told: Any) -> tuple[str, ...]:
    found = [] if told is None else _items(where, [told] if isinstance(told, str) else told)
    for device in found:
        if not isinstance(device, str) or not _DEVICE.fullmatch(device):
            raise HostfileError(
                f"{where} is {_shown(told)}; give a device such as rdma_en2, or null"
            )
    return tuple(found)


def _items(where: str, told: Any) -> list[Any]:
    if not isinstance(told, list) or len(told) > _MOST_PORTS:
        raise HostfileError(f"{where} is {_shown(told)}; give a list of at most {_MOST_PORTS}")
    return told


def _backend(told: Any) -> Backend | None:
    if told in (None, ""):
        return None
    try:
        return Backend(told)
    except ValueError:
        known = ", ".join(backend.value for backend in Backend)
        raise HostfileError(f"its backend is {_shown(told)}; give one of {known}") from None


def _envs(told: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(told, list) or len(told) > _MOST_ENVS:
        raise HostfileError(f"its envs are {_shown(told)}; give a list of at most {_MOST_ENVS}")
    found = []
    for each in told:
        match = _ENV.fullmatch(each) if isinstance(each, str) else None
        if match is None:
            raise HostfileError(
                f"it sets {_shown(each)}; only variables of MLX's are taken from a hostfile,"
                " such as MLX_METAL_FAST_SYNCH=1"
            )
        if match[1] in _OWN_ENVS:
            raise HostfileError(f"it sets {match[1]}, which is each rank's own; remove it")
        found.append((match[1], match[2]))
    return tuple(found)


def _reached(rank: int, count: int, backend: Backend) -> Sequence[int]:
    """The ranks that one of them has a device towards."""
    if backend is Backend.JACCL_RING:
        return sorted({(rank - 1) % count, (rank + 1) % count} - {rank})
    return [other for other in range(count) if other != rank]


def rdma_to_json(devices: tuple[str, ...]) -> str | list[str] | None:
    """A machine's devices towards one rank, as a hostfile and MLX write them."""
    if not devices:
        return None
    return devices[0] if len(devices) == 1 else list(devices)


def _shown(value: Any) -> str:
    """A value as the file has it, cut where it is long, and printable."""
    try:
        text = json.dumps(value)
    except RecursionError:
        return f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
