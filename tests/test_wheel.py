"""The wheel, built once and tested as built: in environments of its own, with new and old parts.

`make wheel-test` and `make compat-test` run these; each makes an environment, and takes minutes.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.soak

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Fast ones from each room; none of them needs the default model.
TESTS = (
    "test_config.py",
    "cache/test_prompt_cache.py",
    "cache/disk/test_store.py",
    "engine/test_engine.py",
    "frontends/test_plugin.py",
    "frontends/test_bench.py",
)
LANGCHAIN = """
import sys
from langchain_mlx_cached import ChatMLXCached

chat = ChatMLXCached(model=sys.argv[1], max_tokens=4)
history = [("human", "one two three")]
answer = chat.invoke(history)
again = chat.invoke([*history, answer, ("human", "four")])
first, second = (found.usage_metadata for found in (answer, again))
assert first["input_token_details"]["cache_read"] == 0, first
assert second["input_token_details"]["cache_read"] >= first["input_tokens"], second
"""


def run(*command, **more):
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, **more
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that this checkout gives, or the one that WHEEL names."""
    if given := os.environ.get("WHEEL"):
        return Path(given).resolve()
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


def oldest():
    """The lowest version of each direct dependency that pyproject.toml claims to work with."""
    claimed = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["langchain"]]
    for requirement in claimed:
        name, version = re.match(r"([\w.-]+)(?:\[[^]]*\])?\s*>=\s*([\w.]+)", requirement).groups()
        if name != "pip":  # the environment's own installer
            yield f"{name}=={version}"


@pytest.fixture(scope="module", params=["newest", "oldest"])
def clean(request, wheel, tmp_path_factory):
    """An environment with the wheel alone, without extras: its Python, and how to add to it."""
    folder = tmp_path_factory.mktemp(request.param)
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    limits = folder / "limits.txt"
    limits.write_text("\n".join(oldest()) if request.param == "oldest" else "")

    def add(*wanted):
        run(python, "-m", "pip", "install", "--quiet", "-c", limits, *wanted)

    add(wheel)
    if os.environ.get("MLX_ON_CPU"):  # as CI has it on Macs
        run(python, ROOT / "tests" / "mlx_on_cpu.py")
    return python, add


def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    information = f"llm_mlx_promptcache-{PROJECT['version']}.dist-info"
    assert tops == {"llm_mlx_promptcache", "langchain_adapter", "langchain_mlx_cached", information}
    assert {f"{package}/py.typed" for package in tops - {information}} <= set(names)
    assert f"{information}/licenses/LICENSE" in names
    sources = [p.relative_to(ROOT) for t in tops for p in (ROOT / t).rglob("*.py")]
    assert {str(source) for source in sources} <= set(names)


def test_the_sdist_gives_the_same_wheel(wheel, tmp_path):
    run(
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "-t",
        "sdist",
        "-d",
        tmp_path / "sdist",
        cwd=ROOT,
    )
    (sdist,) = (tmp_path / "sdist").glob("*.tar.gz")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, sdist)
    (again,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert {i.filename: i.CRC for i in one.infolist()} == {
            i.filename: i.CRC for i in other.infolist()
        }


def test_the_wheel_works_in_a_clean_environment(clean, wheel, tmp_path):
    python, add = clean
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SOAK")}
    own |= {"LLM_USER_PATH": str(tmp_path / "llm"), "LLM_MLX_CACHED_HOME": str(tmp_path / "home")}
    where = {"cwd": tmp_path, "env": own}
    # Alone, without the extra: the plugin, the commands and the core.
    assert "mlx-cached" in run(python.with_name("llm"), "models", **where)
    assert str(tmp_path) in run(python.with_name("llm"), "mlx-cached", "path", **where)
    core = "from llm_mlx_promptcache import PromptCache; assert not PromptCache().check()"
    run(python, "-W", "error", "-c", core, **where)

    add("pytest", "hypothesis", f"{wheel}[langchain]")
    shutil.copytree(ROOT / "tests", tmp_path / "tests")
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    markers = "\n ".join(options["markers"])
    settings = f"[pytest]\naddopts = {' '.join(options['addopts'])}\nmarkers =\n {markers}\n"
    settings += f"pythonpath = {' '.join(options['pythonpath'])}\n"
    (tmp_path / "pytest.ini").write_text(f"{settings}filterwarnings = error\n")
    tests = [f"tests/{name}" for name in TESTS]
    told = run(python, "-m", "pytest", "-q", "-m", "not real_model and not soak", *tests, **where)
    assert int(re.search(r"(\d+) passed", told)[1]) > 40, told

    make = "import sys; sys.path.insert(0, 'tests/engine'); import tiny_models"
    run(python, "-c", f"{make}; tiny_models.write_tiny_llama('tiny')", **where)
    run(python, "-c", LANGCHAIN, "./tiny", **where)
