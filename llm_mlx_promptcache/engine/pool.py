"""The engines and the cache of this process: one engine a model, one cache for all of them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ..cache.sizes import parse_size
from ..config import cache_folder, load_settings
from ..models.memory import CACHE_MOST, budget, shares, weights_of
from ..models.references import spelled
from .engine import Engine
from .events import Loading
from .packing import REST_SECONDS, PackingThread, packing_steps

if TYPE_CHECKING:
    from ..cache.disk.store import DiskStore
    from ..cache.manifest import Manifest
    from ..cache.prompt_cache import PromptCache
    from ..models.memory import Shares
    from .admission import RequestMemory
    from .scheduler import Scheduler

# llm makes a new model object for each lookup, so nothing expensive can live in one.
_engines: dict[str, Engine] = {}
# The weights of each loaded model in bytes, the most recently asked one last.
_weights: dict[str, int] = {}
# The files that each model was read from when it was loaded; none where they could not be told.
_read: dict[str, Manifest] = {}
_cache: PromptCache | None = None
_requests: RequestMemory | None = None
_packing = PackingThread(partial(packing_steps, REST_SECONDS))
_lock = threading.Lock()

DISK_SWITCH = "LLM_MLX_CACHED_DISK"
AHEAD_SWITCH = "LLM_MLX_CACHED_AHEAD"
MEMORY = CACHE_MOST  # bytes, where the user set no limit and models leave four times as much


def engine_for(reference: str) -> Engine:
    """The engine of a model: "default", a folder, or a hub id. Loads nothing yet."""
    reference = spelled(reference)
    with _lock:
        if reference not in _engines:
            _engines[reference] = Engine(partial(_load, reference))
        if reference in _weights:
            _weights[reference] = _weights.pop(reference)
        return _engines[reference]


def hold_engine(reference: str, load: Callable[[Callable[[Loading], None]], Scheduler]) -> Engine:
    """The engine of a model that only `load` can load, held as all others are."""
    with _lock:
        return _engines.setdefault(reference, Engine(load))


def current_engine_for(reference: str) -> Engine:
    """The same, for the files as they are now: a model whose files changed is loaded again.

    A new process would do the same; not while it answers. Waits for the engine's thread.
    """
    engine = engine_for(reference)
    if engine.loaded and not _is_current(spelled(reference)):
        engine.unload()
    return engine


def drop_engine(engine: Engine) -> None:
    """Forget an engine without a model, such as one that failed to load; waits for nothing.

    Nobody may be using it.
    """
    with _lock:
        names = [name for name, other in _engines.items() if other is engine]
        if names and engine.leave():
            del _engines[names[0]]


def engines() -> dict[str, Engine]:
    """The engines of this process by their models' references; some may hold no model now."""
    return dict(_engines)


def model_on_thread(thread: int | None) -> str:
    """The model whose engine runs on a thread, by its identifier; "" where none does.

    Takes no lock: the caller, who is logging, may hold it.
    """
    return next((name for name, engine in engines().items() if engine.runs_on(thread)), "")


def shared_cache() -> PromptCache:
    """The cache of this process, with the disk behind it unless LLM_MLX_CACHED_DISK is 0."""
    global _cache
    from ..cache.prompt_cache import PromptCache

    with _lock:
        if _cache is None:
            _cache = PromptCache(_shares(None).cache, disk=disk_store() if uses_disk() else None)
        return _cache


def cache_in_use() -> PromptCache | None:
    """The cache of this process, if it has one already."""
    return _cache


def weights() -> dict[str, int]:
    """Bytes of the weights of the models in memory, by their references."""
    held = dict(_weights)
    return {name: held.get(name, 0) for name, engine in engines().items() if engine.loaded}


def uses_disk() -> bool:
    """True if this process may keep its work on the disk."""
    return os.environ.get(DISK_SWITCH, "1") != "0"


def works_ahead() -> bool:
    """True if next turns may be prefilled while the user reads."""
    return os.environ.get(AHEAD_SWITCH, "1") != "0" and load_settings().ahead is not False


def disk_store() -> DiskStore:
    """The user's folder of stored spans, with the limits that the settings give it."""
    from ..cache.disk.store import DiskStore

    settings = load_settings()
    return DiskStore(cache_folder(), settings.disk, max_days=settings.max_days)


def close_engines() -> None:
    """End every engine's thread, once its promised writes are on the disk, and the cache."""
    global _cache, _requests
    with _lock:
        ended = list(_engines.values())
        _engines.clear()
        _weights.clear()
        _read.clear()
        _cache = _requests = None
    _packing.end()
    for engine in ended:
        engine.close()


def _load(reference: str, tell: Callable[[Loading], None]) -> Scheduler:
    started = time.perf_counter()
    weights = Loading(f"loading the model {reference}", aloud=False)
    _packing.pause()
    tell(weights)
    from ..cache.identity import Identity
    from ..models.identities import identify
    from ..models.loading import load_model, model_folder
    from .one_machine import scheduler_here
    from .parts import LoadReport

    folder = model_folder(reference, lambda *told: tell(Loading(*told)))
    tell(weights)
    _make_room(reference, weights_of(folder))
    step = partial(tell, weights)
    loaded = load_model(reference, step=step)
    identities = identify(loaded, cache_folder(), step)
    if loaded.files is not None and not identities.uncached:
        _read[reference] = loaded.files
    cache = shared_cache()
    memory = share_out(cache)
    seconds = time.perf_counter() - started
    report = LoadReport(
        reference, seconds, identities.uncached, works_ahead(), memory, packing=_packing
    )
    return scheduler_here(loaded, Identity(identities.model, identities.rows), cache, report)


def _shares(cache: PromptCache | None) -> Shares:
    """The memory for the cache and for requests, of what is left beside them in this process."""
    from ..cache.layers.device_memory import active, device_memory

    beside = active() - (0 if cache is None else cache.nbytes)
    setting = load_settings().memory
    given = None if setting is None else parse_size(setting, "memory")
    return shares(device_memory(), max(0, beside), given)


def share_out(cache: PromptCache) -> RequestMemory:
    """Share out the memory that a newly loaded model leaves, between the cache and requests."""
    from ..cache.layers.device_memory import bound_pool, device_memory
    from .admission import RequestMemory

    global _requests
    found = _shares(cache)
    cache.resize(found.cache)
    bound_pool()
    with _lock:
        if _requests is None:
            _requests = RequestMemory(found.requests, refuses=device_memory().gpu)
        _requests.limit = found.requests
        return _requests


def _is_current(reference: str) -> bool:
    """True if a loaded model is still what its reference means."""
    from ..cache.manifest import FilesChanged
    from ..models.here import folder_here

    files = _read.get(reference)
    if files is None:
        return False
    try:
        files.check()
        folder = folder_here(reference)
        # Files are known by their real paths; a home, a hub's cache or a model may be a link.
        return folder is not None and folder.resolve() == files.folders[0]
    except (FilesChanged, OSError, ValueError):
        return False


def _make_room(reference: str, needed: int) -> None:
    """Unload idle models, the one not asked for longest first, until this one fits."""
    with _lock:
        _weights.pop(reference, None)
        _read.pop(reference, None)
        others = [(name, _engines[name]) for name in _weights if name in _engines]
    for name, engine in others:
        with _lock:
            held = sum(_weights.values())
        if held + needed <= budget():
            break
        if engine.unload():
            with _lock:
                _weights.pop(name, None)
    with _lock:
        _weights[reference] = needed
