"""The hook through which other packages teach the cache their kinds of layer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import pluggy

GROUP = "llm_mlx_promptcache"  # also the entry point group

Register = Callable[[type, type[Any], Callable[[Any], Any]], None]

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)
_log = logging.getLogger(__name__)


class _Specs:
    @hookspec
    def register_layer_kinds(self, register: Register) -> None:
        """Call `register(layer_class, kind_class, make)` for each class of layers you bring."""


@cache
def plugin_manager() -> pluggy.PluginManager:
    """The plugins of this process; tests and applications may register objects of their own."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(_Specs)
    try:
        manager.load_setuptools_entrypoints(GROUP)
    except Exception as error:  # foreign code at import: any exception at all
        _log.warning(
            "a plugin in %s could not be loaded: %s", GROUP, error, extra={"holds": _holds}
        )
    return manager


def call_plugins(register: Register) -> None:
    """Let every plugin register its kinds; one that fails must not take the others down."""
    for implementation in plugin_manager().hook.register_layer_kinds.get_hookimpls():
        try:
            implementation.function(*(register for _ in implementation.argnames))
        except Exception as error:  # foreign code: a missing kind is only a miss
            name = implementation.plugin_name
            _log.warning(
                "the layer kinds of plugin %s are left out: %s",
                name,
                error,
                extra={"holds": _holds},
            )


def _holds() -> bool:
    """True for the life of the process: plugins are loaded once."""
    return True
