"""`doctor`'s lines about the machine: versions, processor and device, memory."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Any

from .doctor_diagnosis import Diagnosis, Health

_PART = "machine"


def machine_diagnoses() -> Iterator[Diagnosis]:
    """Versions, processor and device, and memory; one line where MLX can't be used at all."""
    try:
        from .bench import machine

        found = machine()
    except ImportError as error:  # a wheel for another system, or none
        yield Diagnosis(
            _PART,
            "MLX",
            f"can't be imported: {error}",
            Health.WRONG,
            "install this package again (llm install -U llm-mlx-promptcache)",
        )
        return
    yield versions(found)
    yield processor(found)
    yield memory()


def versions(found: dict[str, Any]) -> Diagnosis:
    """Python's version and those of the packages that answers depend on."""
    packages = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    told = {"python": found["python"], **found["versions"]}
    return Diagnosis(_PART, "versions", f"Python {found['python']}, {packages}", figures=told)


def processor(found: dict[str, Any]) -> Diagnosis:
    """Processor and device, and whatever makes MLX slow there."""
    mac = platform.mac_ver()[0]
    system = f"macOS {mac} {platform.machine()}" if mac else found["system"]
    blas = f", {found['blas']}" if found["blas"] else ""
    said = f"{found['processor']}, {found['cores']} cores, {system}, MLX on the {found['device']}"
    told = {name: found[name] for name in ("processor", "cores", "device", "blas")}
    told["system"] = system
    health, todo = _slow(found["blas"])
    return Diagnosis(_PART, "device", said + blas, health, todo, told)


def _slow(blas: str | None) -> tuple[Health, str]:
    system, machine = platform.system(), platform.machine()
    if system == "Darwin" and machine == "x86_64":
        todo = "this Python is made for Intel: install one for arm64, and llm with it"
        return Health.WRONG, todo
    if system == "Linux" and blas is None:
        return Health.NOTE, "prefill is slow without a fast BLAS: see docs/linux.md"
    return Health.OK, ""


def memory() -> Diagnosis:
    """Memory for models, and whether the system has too little just now."""
    from ..cache.layers.device_memory import device_memory
    from ..cache.sizes import format_size
    from ..host.pressure import under_pressure

    found, short = device_memory(), under_pressure()
    said = format_size(found.machine)
    if found.gpu:
        said += f", of which {format_size(found.working_set)} for the GPU"
    told = {"machine": found.machine, "working_set": found.working_set, "short": short}
    if not short:
        return Diagnosis(_PART, "memory", said, figures=told)
    todo = "other programs hold most of it: what is measured here is slower than it could be"
    return Diagnosis(_PART, "memory", f"{said}; it is short just now", Health.NOTE, todo, told)
