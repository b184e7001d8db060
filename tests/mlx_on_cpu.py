"""MLX's default device is the CPU in all processes of an environment: CI's suite on a Mac.

`python tests/mlx_on_cpu.py` says so to the environment that runs it, for good: a line that each
of its interpreters reads as it starts. Nothing is imported by it that a process would not import.
"""

import sys
import sysconfig
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from pathlib import Path

MODULE = "mlx.core"
LINE = "import sys; sys.path.append({folder!r}); import mlx_on_cpu; mlx_on_cpu.watch()\n"


class OnCPU(MetaPathFinder):
    """Finds MLX as others do, and sets its device once it is imported."""

    def find_spec(self, name, path=None, target=None):
        """The module's spec, where it is MLX's; each is found by others."""
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        run = spec.loader.exec_module

        def on_cpu(module):
            run(module)
            module.set_default_device(module.cpu)

        spec.loader.exec_module = on_cpu
        return spec


def watch():
    """Set the device of this process once MLX is imported."""
    sys.meta_path.insert(0, OnCPU())


if __name__ == "__main__":
    place = Path(sysconfig.get_path("purelib"), "mlx_on_cpu.pth")
    place.write_text(LINE.format(folder=str(Path(__file__).parent.resolve())))
    print(f"MLX's default device is the CPU here, says {place}")
