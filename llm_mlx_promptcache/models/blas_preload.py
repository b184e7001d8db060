"""The fast BLAS loaded right before MLX, whoever imports it; imports no MLX itself.

MLX's calls by name (`cblas_sgemm` and others) are bound once, when its library is loaded: to a
library that the process has loaded globally by then, else to the slow BLAS in its own wheel.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes

_MLX = "mlx.core"
_CALLED = "cblas_sgemm"
_log = logging.getLogger(__name__)


def preload() -> None:
    """Load the fast BLAS for all libraries that this process loads from now on.

    Does nothing if MLX is loaded already, if the process has a global BLAS (LD_PRELOAD), if
    LLM_MLX_CACHED_BLAS is 0, or if no BLAS is found.
    """
    from .blas import SWITCH, find

    if sys.platform != "linux" or _MLX in sys.modules or os.environ.get(SWITCH) == "0":
        return
    import ctypes
    from tempfile import TemporaryDirectory

    if hasattr(_for_all(), _CALLED) or (blas := find()) is None:
        return
    try:
        # Links are needed only while it is loaded.
        with TemporaryDirectory(prefix="mlx-cached-blas-") as folder:
            loaded = ctypes.CDLL(str(blas.placed(Path(folder))), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        _log.warning("MLX computes with its own slow BLAS: %s (%s=0 ends this)", error, SWITCH)
        return
    if (threads := blas.threads_in(os.environ)) is not None:
        loaded.openblas_set_num_threads(threads)


def blas_in_use() -> str | None:
    """The global BLAS of this process, MLX's too, as it describes itself.

    None if there is none, so that MLX uses the one that it links.
    """
    import ctypes

    loaded = _for_all()
    if not hasattr(loaded, _CALLED):
        return None
    if not hasattr(loaded, "openblas_get_config"):
        return Path(_file_of(loaded)).name
    loaded.openblas_get_config.restype = ctypes.c_char_p
    loaded.openblas_get_corename.restype = ctypes.c_char_p
    config, core = loaded.openblas_get_config(), loaded.openblas_get_corename()
    return f"{' '.join(config.decode().split()[:2])} ({core.decode()})"


def _for_all() -> ctypes.CDLL:
    """The symbols that every library of this process sees."""
    import ctypes

    return ctypes.CDLL(None)


def _file_of(loaded: ctypes.CDLL) -> str:
    import ctypes

    class Found(ctypes.Structure):
        _fields_ = [
            ("file", ctypes.c_char_p),
            ("base", ctypes.c_void_p),
            ("symbol", ctypes.c_char_p),
            ("address", ctypes.c_void_p),
        ]

    found = Found()
    loaded.dladdr(ctypes.cast(getattr(loaded, _CALLED), ctypes.c_void_p), ctypes.byref(found))
    return os.fsdecode(found.file or b"another BLAS")
