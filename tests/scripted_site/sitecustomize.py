"""Makes scripted models known to a Python that a test starts; see `scripted_model.environment`."""

import importlib.abc
import sys


class _OnDemand(importlib.abc.MetaPathFinder):
    """Finds `mlx_lm.models.scripted` when mlx-lm asks for it, and not before."""

    def find_spec(self, name, path=None, target=None):
        """The module's spec, once `scripted_model` has made it."""
        if name != "mlx_lm.models.scripted":
            return None
        from importlib.machinery import ModuleSpec

        return ModuleSpec(name, _Made())


class _Made:
    def create_module(self, spec):
        """The module that importing `scripted_model` has registered."""
        import scripted_model  # noqa: F401

        return sys.modules[spec.name]

    def exec_module(self, module):
        """Nothing is left to do."""


sys.meta_path.append(_OnDemand())
