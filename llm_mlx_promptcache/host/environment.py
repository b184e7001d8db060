"""The environment variables that a host is started with, and those that answers depend on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..config import HOME_VARIABLE, KEEP_VARIABLE
from ..models.paths import real_path

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
# These change what is fetched, read or computed.
_MATTERS: Final = frozenset({"TZ", "PYTHONPATH", "PYTHONHOME", *_PROXIES})
_MATTERS_PREFIXES: Final = (
    "LLM_MLX_CACHED_",
    "HF_",
    "HUGGING_FACE_",
    "HUGGINGFACE_",
    "MLX_",
    "OMP_",
    "OPENBLAS_",
)
# Each client says how long its host stays, and homes are compared by the folders they give.
_COMPARED_ELSEWHERE: Final = frozenset({HOME_VARIABLE, KEEP_VARIABLE})

# Besides those: variables that a process needs to run at all, and to find its starter's packages.
_NEEDED: Final = frozenset(
    {
        "PATH",
        "HOME",
        "USER",
        "LANG",
        "TMPDIR",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "VIRTUAL_ENV",
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONNOUSERSITE",
        "PYTHONPYCACHEPREFIX",
        "PYTHONUSERBASE",
    }
)
_NEEDED_PREFIXES: Final = (
    "LC_",
    "XDG_",
    "TRANSFORMERS_",
    "SSL_CERT_",
    "DYLD_",
    "CUDA_",
    "COVERAGE_",
)
# Folders and files, or several of them: a host has no folder of its own to find them from.
_PATHS: Final = frozenset(
    {
        HOME_VARIABLE,
        "CURL_CA_BUNDLE",
        "HF_ASSETS_CACHE",
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_TOKEN_PATH",
        "HF_XET_CACHE",
        "HUGGINGFACE_ASSETS_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "LD_LIBRARY_PATH",
        "PATH",
        "PYTHONPATH",
        "REQUESTS_CA_BUNDLE",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TMPDIR",
        "XDG_CACHE_HOME",
        "XDG_DATA_HOME",
    }
)


def of_host(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that a host gets from its starter; no secrets but the hub's and proxies'.

    Relative paths are made absolute: a host runs in `/`.
    """
    return {
        name: _whole(name, value)
        for name, value in environ.items()
        if _is_one(name, _MATTERS, _MATTERS_PREFIXES) or _is_one(name, _NEEDED, _NEEDED_PREFIXES)
    }


def that_matters(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables on which answers depend, folders as their real paths."""
    return {
        name: _resolved(name, value)
        for name, value in environ.items()
        if _is_one(name, _MATTERS, _MATTERS_PREFIXES) and name not in _COMPARED_ELSEWHERE
    }


def _is_one(name: str, names: frozenset[str], prefixes: tuple[str, ...]) -> bool:
    return name in names or name.upper() in _PROXIES or name.startswith(prefixes)


def _whole(name: str, value: str) -> str:
    """A value whose paths mean the same in every folder."""
    # `~` is left to its reader, who knows whose home it is.
    return _each(name, value, lambda p: p if p.startswith("~") else str(Path(p).absolute()))


def _resolved(name: str, value: str) -> str:
    """A value that is the same for all paths that lead to one place."""
    return _each(name, value, lambda p: str(real_path(os.path.expanduser(p))))  # noqa: PTH111


def _each(name: str, value: str, path: Callable[[str], str]) -> str:
    if name not in _PATHS or not value:
        return value
    return os.pathsep.join(map(path, value.split(os.pathsep)))
