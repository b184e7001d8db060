"""Matrix products by the BLAS that computes them: MLX's own, the system's OpenBLAS, the extra's.

Each product runs in a fresh process that imports MLX, over and over, taking turns; the figure is
the median. `--keep docs` writes the table into docs/linux.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from harness import ROOT, write_part

from llm_mlx_promptcache.commands.bench import machine, machine_line
from llm_mlx_promptcache.models.blas import SWITCH, environment, find

ROUNDS = 5
# Rows, inner, columns: a square, and a prefill of 512 tokens through the default model's MLP.
SHAPES = ((1024, 1024, 1024), (512, 576, 1536))
_COMMAND = "python benchmarks/blas.py"
_PRODUCT = """
import sys, time
if sys.argv[1] == "in-process":
    import llm_mlx_promptcache
import mlx.core as mx
mx.set_default_device(mx.cpu)
for shape in sys.argv[2:]:
    rows, inner, columns = map(int, shape.split("x"))
    a, b = mx.random.normal((rows, inner)), mx.random.normal((inner, columns))
    mx.eval(a, b, a @ b)
    count, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < 0.5:
        mx.eval(a @ b)
        count += 1
    print(count * 2 * rows * inner * columns / took / 1e9)
"""


def main() -> int:
    """Print the table; `--keep` also writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="write the table into linux.md there")
    options = parser.parse_args()
    if sys.platform != "linux":
        raise SystemExit("MLX has a fast BLAS of the system's here (Accelerate)")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="mlx-cached-blas-") as folder:
        ways = _ways(Path(folder))
        taken: dict[str, list[list[float]]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, (mode, variables) in ways.items():
                taken[name].append(_products(mode, variables))
    ran = f"{machine_line(machine())} Load {load:.1f} before it began."
    table = "\n".join([*_table(taken), "", ran])
    print(table)
    if options.keep is not None:
        write_part(options.keep / "linux.md", "products", _COMMAND, table)
    return 0


def _ways(folder: Path) -> dict[str, tuple[str, Mapping[str, str]]]:
    """The ways to get each BLAS in a process: whether it preloads itself, and its environment."""
    base = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", SWITCH)}
    ways: dict[str, tuple[str, Mapping[str, str]]] = {
        "MLX's own": ("plain", base),
        "what our package loads before MLX": ("in-process", base),
    }
    for name, root in (("the system's OpenBLAS", Path("/")), ("the extra `blas`", folder / "none")):
        found = find(root)
        if found is not None and bool(found.beside) == (root != Path("/")):
            there = environment(found, folder / "links", base)
            ways[f"{name}, by LD_PRELOAD"] = ("plain", {**base, **there})
    return ways


def _products(mode: str, variables: Mapping[str, str]) -> list[float]:
    """GFLOP/s of each shape."""
    shapes = ["x".join(map(str, shape)) for shape in SHAPES]
    command = [sys.executable, "-c", _PRODUCT, mode, *shapes]
    done = subprocess.run(command, env=variables, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return [float(line) for line in done.stdout.split()]


def _table(taken: Mapping[str, list[list[float]]]) -> list[str]:
    heads = " | ".join(" x ".join(map(str, shape)) for shape in SHAPES)
    lines = [f"| BLAS, GFLOP/s | {heads} |", "|---|" + "--:|" * len(SHAPES)]
    for name, rounds in taken.items():
        figures = " | ".join(f"{median(column):.1f}" for column in zip(*rounds, strict=True))
        lines.append(f"| {name} | {figures} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
