"""An environment that asks for it has MLX on the CPU in every process."""

import subprocess
import sys
from pathlib import Path

import mlx_on_cpu

# As MLX on a Mac: what is its default device is told where it was set.
PLAYED = """
import threading
cpu, gpu = "cpu", "gpu"
device = gpu
def set_default_device(wanted):
    global device
    device = wanted
"""
ASKED = """
import site, sys
site.addsitedir(sys.argv[1])
print([name for name in sys.modules if name.startswith("mlx.")])
import mlx.core as mx
print(mx.device, mx.__spec__.name, [one for one in sys.meta_path if "OnCPU" in repr(one)])
"""


def test_mlx_is_on_the_cpu_once_it_is_imported_and_is_not_imported_for_that(tmp_path):
    package = tmp_path / "mlx"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "core.py").write_text(PLAYED)
    folder = str(Path(mlx_on_cpu.__file__).parent)
    (tmp_path / "mlx_on_cpu.pth").write_text(mlx_on_cpu.LINE.format(folder=folder))
    command = [sys.executable, "-I", "-S", "-c", ASKED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\ncpu mlx.core []\n", "")
