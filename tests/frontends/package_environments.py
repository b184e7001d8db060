"""Environments that have one package over all that this one has, and tests driven in them."""

import subprocess
import sysconfig
import venv
from pathlib import Path
from typing import NamedTuple

import pytest

_LLM = """#!{python}
from llm.cli import cli

cli()
"""


class Package(NamedTuple):
    """A package, the versions that its tests are written for, and warnings of its own."""

    name: str
    versions: str
    warns: tuple[str, ...] = ()


def installed(package: Package, folder: Path) -> str:
    """The Python of a new environment with `package`; the test is skipped where pip can't."""
    venv.create(folder, with_pip=True)
    inner = sysconfig.get_path("purelib", vars={"base": str(folder)})
    over = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (Path(inner) / "base.pth").write_text(over)
    python = folder / "bin" / "python"
    # pip makes no commands of what is there already.
    command = folder / "bin" / "llm"
    command.write_text(_LLM.format(python=python))
    command.chmod(0o755)
    wanted = f"{package.name}{package.versions}"
    done = _run(str(python), "-m", "pip", "install", "--quiet", wanted)
    if done.returncode:
        why = (done.stderr.strip() or "pip said nothing").splitlines()[-1]
        pytest.skip(f"{wanted} can't be installed here: {why}")
    return str(python)


def drive(package: Package, python: str, tests: Path, folder: Path) -> None:
    """Run the package's file among `tests` with that Python; what was counted is printed."""
    driven = tests / f"drive_{package.name.replace('-', '_')}.py"
    own = [option for message in package.warns for option in ("-W", f"ignore:{message}")]
    told = ["-q", "-rP", "--tb=short", "-p", "no:cacheprovider", f"--basetemp={folder}"]
    done = _run(python, "-m", "pytest", *told, *own, str(driven))
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout[-5000:]}\n{done.stderr[-3000:]}"
    counted = [line for line in done.stdout.splitlines() if line.endswith(" of them new")]
    assert counted
    print("\n".join(counted))


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)
