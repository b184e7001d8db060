"""The fast BLAS for MLX's CPU wheel on Linux, which links a slow one.

An OpenBLAS of the system comes first, then the wheel of the extra `blas`. No other place is
searched: no current folder, no environment variable. This file imports no MLX.

`python -m llm_mlx_promptcache.models.blas FOLDER` prints the variables to start any other program
over MLX with (`env $(...) program`); FOLDER gets links to libraries where they are needed.
"""

from __future__ import annotations

import os
import re
import shlex
import site
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SWITCH = "LLM_MLX_CACHED_BLAS"

# Threaded builds first, where a system has both.
_SYSTEM = (
    "usr/lib/*-linux-gnu/openblas-pthread/libopenblas.so.0",  # Debian, Ubuntu
    "usr/lib/*-linux-gnu/libopenblas.so.0",
    "usr/lib64/libopenblasp.so.0",  # Fedora
    "usr/lib64/openblas-pthreads/libopenblas.so.0",  # openSUSE
    "usr/lib64/libopenblas.so.0",
    "usr/lib/libopenblas.so.0",  # Arch
)
_LOADER_CACHE = "etc/ld.so.cache"
_LOADER_PATH = re.compile(rb"(/[!-9;-~]{1,512}/libopenblasp?\.so\.0)\0")
_MOST_BYTES = 8 << 20  # of the loader's cache, which has 200 KB on a full desktop

_WHEEL = "ngsolve-openblas"
_FORTRAN = re.compile(r"libgfortran-[0-9a-f]+\.so\.(\d+)\b.*", re.ASCII)
# Variables by which a user limits OpenBLAS's threads.
_THREADS = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")
_NAMES = re.compile(r"openblas|mkl_rt|blis|libblas")


@dataclass(frozen=True)
class Blas:
    """A BLAS, and the libraries that its folder must have beside it, by the names it asks for.

    `threads` is the number of threads it gets unless the user chose one; None leaves that to it.
    """

    path: Path
    beside: Mapping[str, Path] = field(default_factory=dict)
    threads: int | None = None

    def placed(self, folder: Path) -> Path:
        """The file to load: itself, or, where it needs others, one of links to all in `folder`."""
        if not self.beside:
            return self.path
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, target in {**self.beside, self.path.name: self.path}.items():
            new = folder / f"{name}.{os.getpid()}"
            new.symlink_to(target)
            new.replace(folder / name)
        return folder / self.path.name

    def threads_in(self, base: Mapping[str, str]) -> int | None:
        """The number of threads to give a process with these variables; None leaves it alone."""
        return None if any(name in base for name in _THREADS) else self.threads


def find(root: Path = Path("/"), packages: Sequence[str] | None = None) -> Blas | None:
    """The BLAS to compute with; None without MLX's CPU wheel for Linux, or where there is none.

    `root` is the system's; `packages` are the folders of installed packages, else this Python's.
    """
    if sys.platform != "linux":
        return None
    folders = site.getsitepackages() if packages is None else packages
    ours = _files_of("mlx-cpu", folders)
    if not ours:
        return None
    system = next((path for path in _of_the_system(root) if _is_for_this_processor(path)), None)
    return Blas(system) if system is not None else _of_the_wheel(folders, ours)


def environment(blas: Blas | None, folder: Path, base: Mapping[str, str]) -> dict[str, str]:
    """The variables that make a child process with `base` compute with this BLAS from its start.

    Empty if `base` already has another one, or says no; links that are needed go to `folder`.
    ValueError for a path that LD_PRELOAD can't hold.
    """
    theirs = base.get("LD_PRELOAD", "")
    if blas is None or base.get(SWITCH) == "0" or _NAMES.search(theirs):
        return {}
    path = str(blas.placed(folder.absolute()))
    if re.search(r"[\s:]", path):
        raise ValueError(f"LD_PRELOAD can't name {path}: it splits names at spaces and colons")
    found = {"LD_PRELOAD": f"{theirs}:{path}" if theirs else path}
    if (threads := blas.threads_in(base)) is not None:
        found["OPENBLAS_NUM_THREADS"] = str(threads)
    return found


def _of_the_system(root: Path) -> Iterator[Path]:
    for pattern in _SYSTEM:
        yield from sorted(root.glob(pattern))
    try:
        with (root / _LOADER_CACHE).open("rb") as file:
            known = file.read(_MOST_BYTES)
    except OSError:
        return
    for found in _LOADER_PATH.finditer(known):
        yield root / os.fsdecode(found[1]).lstrip("/")


def _is_for_this_processor(path: Path) -> bool:
    """True if a library is made for this Python's processor: 64 bits, byte order, machine."""
    try:
        ours, its = (_elf_kind(file) for file in (Path("/proc/self/exe"), path))
    except OSError:
        return False
    return its == ours


def _elf_kind(path: Path) -> tuple[bytes, bytes, bytes]:
    with path.open("rb") as file:
        head = file.read(20)
    return head[:4], head[4:6], head[18:20]


def _of_the_wheel(folders: Sequence[str], mlx_files: Sequence[Path]) -> Blas | None:
    """The extra's OpenBLAS, with Fortran's library, which MLX's wheel brings for its own LAPACK.

    It looks for libraries in its own folder first (its RPATH is $ORIGIN), as they do. Its threads
    wait for one another without giving way: where other programs keep the processors busy, one
    for each makes small products a hundred times slower. Half of them are left to others.
    """
    paths = [path for path in _files_of(_WHEEL, folders) if path.name.startswith("libopenblas")]
    libraries = {path.name: path for path in mlx_files if path.parent.name == "mlx_cpu.libs"}
    for name, path in list(libraries.items()):
        if fortran := _FORTRAN.fullmatch(name):
            libraries[f"libgfortran.so.{fortran[1]}"] = path
    if not paths or not _is_for_this_processor(paths[0]):
        return None
    return Blas(paths[0], libraries, max(1, _processors() // 2))


def _processors() -> int:
    """The number of processors this process may use, or that of the machine if unknown."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _files_of(package: str, folders: Sequence[str]) -> list[Path]:
    """The shared libraries of an installed package; the package is not imported."""
    from importlib.metadata import Distribution

    for found in Distribution.discover(name=package, path=list(folders)):
        paths = [Path(str(found.locate_file(file))) for file in found.files or ()]
        return [path for path in paths if ".so" in path.name]
    return []


def main() -> None:
    """Print that environment, for a shell."""
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: python -m {__spec__.name} FOLDER")
    try:
        found = environment(find(), Path(sys.argv[1]), os.environ)
    except (OSError, ValueError) as error:
        print(f"MLX computes with its own slow BLAS: {error}", file=sys.stderr)
        return
    print(*(f"{name}={shlex.quote(value)}" for name, value in found.items()))


if __name__ == "__main__":
    main()
