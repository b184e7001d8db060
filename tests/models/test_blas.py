"""The BLAS that MLX computes with: the one that is found, and the one real processes bind."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llm_mlx_promptcache.models import blas
from llm_mlx_promptcache.models.blas import Blas, environment, find

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="macOS has Accelerate")

HEAD = Path("/proc/self/exe").read_bytes()[:20] if sys.platform == "linux" else b""
OTHER = HEAD[:18] + bytes([HEAD[18] ^ 1, *HEAD[19:]]) if HEAD else b""
DEBIAN = "usr/lib/some-linux-gnu/openblas-pthread/libopenblas.so.0"
SYSTEM = [
    DEBIAN,
    "usr/lib/some-linux-gnu/libopenblas.so.0",
    "usr/lib64/libopenblasp.so.0",
    "usr/lib64/openblas-pthreads/libopenblas.so.0",
    "usr/lib64/libopenblas.so.0",
    "usr/lib/libopenblas.so.0",
]
WHEEL = "ngsolve_openblas/libopenblasp-r9.so"


def library(path, head=HEAD):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + b"the rest")
    return path


def install(folder, name, *files):
    """A made-up package in a folder of packages, as pip lists it."""
    paths = [library(folder / file) for file in files]
    about = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    return paths


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


@pytest.fixture
def packages(tmp_path):
    """A folder of packages with MLX's CPU wheel in it."""
    folder = tmp_path / "site-packages"
    install(folder, "mlx-cpu", "mlx_cpu.libs/libgfortran-0af.so.5.0.0", "mlx/lib/libmlx.so")
    return folder


@pytest.mark.parametrize("path", SYSTEM)
def test_the_systems_openblas_is_found_and_stands_alone(root, packages, path):
    install(packages, "ngsolve-openblas", WHEEL)
    there = library(root / path)
    assert find(root, [str(packages)]) == Blas(there)


def test_one_with_threads_comes_before_one_without(root, packages):
    for path in SYSTEM:
        library(root / path)
    assert find(root, [str(packages)]).path == root / DEBIAN


def test_what_only_the_loader_knows_is_found(root, packages):
    there = library(root / "opt/science/libopenblas.so.0")
    cache = root / "etc/ld.so.cache"
    cache.parent.mkdir()
    cache.write_bytes(b"\0\7libopenblas.so.0\0/opt/science/libopenblas.so.0\0libz.so\0")
    assert find(root, [str(packages)]) == Blas(there)
    cache.write_bytes(b"\0/opt/science/libopenblas64_.so.0\0/opt/science/libopenblas.so.0.3\0")
    assert find(root, [str(packages)]) is None


def test_one_for_another_processor_is_passed_by(root, packages):
    library(root / DEBIAN, OTHER)
    (root / SYSTEM[1]).write_bytes(b"#!")
    (root / "usr/lib64").mkdir()
    (root / SYSTEM[2]).symlink_to(root / "gone")
    assert find(root, [str(packages)]) is None
    there = library(root / SYSTEM[-1])
    assert find(root, [str(packages)]) == Blas(there)


def test_without_the_systems_the_extras_is_found_with_what_it_needs(root, packages):
    (ours,) = install(packages, "ngsolve-openblas", WHEEL)
    fortran = packages / "mlx_cpu.libs/libgfortran-0af.so.5.0.0"
    found = find(root, [str(packages)])
    half = max(1, len(os.sched_getaffinity(0)) // 2)
    assert found == Blas(ours, {fortran.name: fortran, "libgfortran.so.5": fortran}, half)
    library(ours, OTHER)
    assert find(root, [str(packages)]) is None


def test_without_mlxs_cpu_wheel_nothing_is_found(root, tmp_path):
    library(root / DEBIAN)
    install(tmp_path / "other", "ngsolve-openblas", WHEEL)
    assert find(root, [str(tmp_path / "other")]) is None


def test_neither_the_current_folder_nor_a_variable_is_looked_at(
    root, packages, tmp_path, monkeypatch
):
    install(tmp_path, "ngsolve-openblas", WHEEL, "libopenblas.so.0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert find(root, [str(packages)]) is None


def test_a_child_keeps_what_the_user_preloads(tmp_path):
    ours = Blas(Path("/lib/libopenblas.so.0"))
    assert environment(ours, tmp_path, {}) == {"LD_PRELOAD": "/lib/libopenblas.so.0"}
    theirs = {"LD_PRELOAD": "/lib/libjemalloc.so.2", "PATH": "/bin"}
    both = "/lib/libjemalloc.so.2:/lib/libopenblas.so.0"
    assert environment(ours, tmp_path, theirs) == {"LD_PRELOAD": both}
    assert environment(None, tmp_path, theirs) == {}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"])
def test_how_many_threads_is_the_users_to_say(name, tmp_path):
    few = Blas(Path("/lib/libopenblas.so.0"), threads=3)
    assert environment(few, tmp_path, {})["OPENBLAS_NUM_THREADS"] == "3"
    assert environment(few, tmp_path, {name: "7"}) == {"LD_PRELOAD": "/lib/libopenblas.so.0"}


@pytest.mark.parametrize(
    "base", [{"LD_PRELOAD": "/opt/libmkl_rt.so"}, {"LD_PRELOAD": "libblis.so"}, {blas.SWITCH: "0"}]
)
def test_a_child_with_another_blas_or_none_is_left_alone(base, tmp_path):
    assert environment(Blas(Path("/lib/libopenblas.so.0")), tmp_path, base) == {}


def test_links_are_replaced_and_a_path_that_cannot_be_preloaded_is_refused(tmp_path):
    names = {"libgfortran.so.5": Path("/packages/libgfortran-0af.so.5.0.0")}
    found = Blas(Path("/packages/libopenblasp-r9.so"), names)
    for _ in range(2):
        assert found.placed(tmp_path / "one") == tmp_path / "one" / "libopenblasp-r9.so"
    links = {path.name: path.readlink() for path in (tmp_path / "one").iterdir()}
    assert links == {**names, "libopenblasp-r9.so": found.path}
    with pytest.raises(ValueError, match=r"can't name .*/two words/"):
        environment(found, tmp_path / "two words", {})


# Real processes from here on.

HIDDEN = (
    "from llm_mlx_promptcache.models import blas as b\nb._SYSTEM, b._LOADER_CACHE = (), 'none'\n"
)
MULTIPLY = "import mlx.core as mx\nmx.eval(mx.ones((8, 8)) @ mx.ones((8, 8)))\n"


def test_where_nobody_tells_who_may_use_which_all_processors_count(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert blas._processors() == 1
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert blas._processors() == 6


has_wheel = bool(find(Path("/nowhere"))) if sys.platform == "linux" else False
needs_wheel = pytest.mark.skipif(
    not has_wheel, reason=f"no extra `blas` installed ({platform.machine()}); the targets do"
)
needs_any = pytest.mark.skipif(
    sys.platform == "linux" and find() is None, reason="neither a system's OpenBLAS nor the extra"
)


def plain():
    gone = ("LD_PRELOAD", blas.SWITCH, *blas._THREADS)
    return {name: value for name, value in os.environ.items() if name not in gone}


def output(code, **variables):
    command = [sys.executable, "-c", code]
    env = {**plain(), **variables}
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    return done.stdout + done.stderr


def bound(code, tmp_path, **variables):
    """The file that the loader binds MLX's calls of cblas_sgemm to, by the loader's own word."""
    said = tmp_path / "loader"
    output(code, LD_DEBUG="bindings", LD_DEBUG_OUTPUT=str(said), **variables)
    (log,) = tmp_path.glob("loader.*")
    call = r"binding file \S+/libmlx\.so \[\d+\] to (\S+) \[\d+\]: normal symbol `cblas_sgemm'"
    (file,) = set(re.findall(call, log.read_text()))
    return Path(file).name


FIRST = {
    "an application": "import llm_mlx_promptcache\n",
    "mlx-lm": "import llm_mlx_promptcache, mlx_lm.models.cache\n",
    "the cache": "from llm_mlx_promptcache import PromptCache\nPromptCache('1MB')\n",
    "counting": "import langchain_adapter\nfrom llm_mlx_promptcache.engine import counting\n",
    "an engine": "from llm_mlx_promptcache.engine import scheduler\n",
}


@needs_any
@pytest.mark.parametrize("first", FIRST)
def test_law_15_mlx_is_bound_to_the_fast_blas_whoever_imports_it_first(first, tmp_path):
    assert bound(FIRST[first] + MULTIPLY, tmp_path).startswith("libopenblas")


@needs_wheel
def test_without_the_systems_mlx_is_bound_to_the_extras(tmp_path):
    assert bound(HIDDEN + MULTIPLY, tmp_path) == find(Path("/nowhere")).path.name
    # Fortran's library is MLX's own, whatever the system has.
    maps = "print(open('/proc/self/maps').read())"
    loaded = set(re.findall(r"/\S+gfortran\S*", output(HIDDEN + MULTIPLY + maps)))
    assert {Path(path).parent.name for path in loaded} == {"mlx_cpu.libs"}


@needs_wheel
def test_a_process_started_with_the_extras_is_bound_to_it(tmp_path):
    found = environment(find(Path("/nowhere")), tmp_path / "links", plain())
    assert bound(MULTIPLY, tmp_path, **found) == find(Path("/nowhere")).path.name


@needs_wheel
def test_the_extras_threads_leave_half_of_the_processors_to_others(tmp_path):
    ask = HIDDEN + MULTIPLY + "import ctypes\nprint(ctypes.CDLL(None).openblas_get_num_threads())"
    wheel = find(Path("/nowhere"))
    child = environment(wheel, tmp_path, plain())
    assert [output(ask), output(ask, **child)] == [f"{wheel.threads}\n"] * 2
    one_more = str(min(wheel.threads + 1, len(os.sched_getaffinity(0))))
    assert output(ask, OPENBLAS_NUM_THREADS=one_more) == f"{one_more}\n"


@needs_any
def test_mlx_that_was_there_first_or_a_user_who_says_no_keeps_mlxs_own(tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "no").mkdir()
    late = bound(MULTIPLY + FIRST["an engine"], tmp_path / "first")
    said_no = bound(FIRST["an application"] + MULTIPLY, tmp_path / "no", **{blas.SWITCH: "0"})
    assert late.startswith("libblas-")
    assert said_no.startswith("libblas-")


@needs_any
def test_a_process_that_has_a_blas_gets_no_second_one(tmp_path):
    maps = "print({p.split()[-1] for p in open('/proc/self/maps') if 'libopenblas' in p})"
    child = environment(find(), tmp_path, plain())
    alone = output(FIRST["an application"] + MULTIPLY + maps)
    assert alone.count("libopenblas") == 1
    assert output(FIRST["an application"] + MULTIPLY + maps, **child) == alone
    assert output(HIDDEN + MULTIPLY + maps, **child) == alone


def test_importing_the_package_loads_no_blas():
    code = """
import sys, llm_mlx_promptcache
print({"ctypes", "llm_mlx_promptcache.models.blas"} & set(sys.modules))
print([line for line in open("/proc/self/maps") if "blas" in line])
"""
    assert output(code) == "set()\n[]\n"


def test_one_that_cannot_be_loaded_is_one_warning_and_mlx_computes(root, packages):
    library(root / DEBIAN)
    code = f"""
import logging
from llm_mlx_promptcache.models import blas
from pathlib import Path
found = blas.find(Path({str(root)!r}), [{str(packages)!r}])
assert found is not None
blas.find = lambda: found
"""
    said = output(code + MULTIPLY + "import mlx_lm.models.cache\nprint('computed')")
    assert said.count("MLX computes with its own slow BLAS") == 1
    assert "LLM_MLX_CACHED_BLAS=0" in said
    assert "computed" in said


DIGEST = """
import hashlib, sys
from llm_mlx_promptcache.models.loading import load_model
import mlx.core as mx
from pathlib import Path
model = load_model(sys.argv[1]).model
mx.random.seed(0)
hashed = hashlib.sha256()
for tokens in (97, 1):
    ids = mx.random.randint(3, 60, (1, tokens))
    hashed.update(bytes(memoryview(model(ids).astype(mx.float32))))
a, b = mx.random.normal((200, 300)), mx.random.normal((300, 100))
hashed.update(bytes(memoryview(a @ b)))
print("digest", hashed.hexdigest())
"""


def digest(folder, code=DIGEST, **variables):
    return output(code.replace("sys.argv[1]", repr(str(folder))), **variables).split()[-1]


@needs_any
def test_law_15_answers_are_equal_to_the_bit_however_one_blas_is_loaded(tiny_llama, tmp_path):
    folder = tiny_llama()
    ours = digest(folder)
    assert ours == digest(folder, **environment(find(), tmp_path, plain()))
    assert ours != digest(folder, **{blas.SWITCH: "0"})


@needs_wheel
def test_law_15_so_are_those_with_the_extras(tiny_llama, tmp_path):
    folder = tiny_llama()
    child = environment(find(Path("/nowhere")), tmp_path, plain())
    assert digest(folder, HIDDEN + DIGEST) == digest(folder, **child)


@needs_any
def test_what_is_used_is_told(tmp_path):
    told = "from llm_mlx_promptcache.models.blas_preload import blas_in_use\nprint(blas_in_use())"
    name = r"OpenBLAS \d+\.\d+\S* \(\w+\)\n"
    assert re.fullmatch(name, output(MULTIPLY.join(["import llm_mlx_promptcache\n", told])))
    assert output(MULTIPLY + told) == "None\n"
    # No OpenBLAS: told by its file's name.
    (own,) = (path for path in blas._files_of("mlx-cpu", sys.path) if "libblas" in path.name)
    fortran = next(path for path in own.parent.iterdir() if "gfortran" in path.name)
    assert output(MULTIPLY + told, LD_PRELOAD=f"{fortran}:{own}") == f"{own.name}\n"


@needs_any
def test_the_module_prints_what_a_shell_starts_a_program_with(tmp_path):
    command = [sys.executable, "-m", "llm_mlx_promptcache.models.blas", str(tmp_path / "links")]
    done = subprocess.run(command, env=plain(), check=True, capture_output=True, text=True)
    assert re.fullmatch(r"LD_PRELOAD=\S*libopenblas\S*\n", done.stdout)
    assert done.stderr == ""
    usage = subprocess.run(command[:-1], env=plain(), capture_output=True, text=True)
    assert usage.returncode != 0
    assert "FOLDER" in usage.stderr
