"""GitHub's workflows name what there is: jobs, steps, matrices, commands, files and targets.

They run nowhere but there, so what a linter of them would find is looked for here.
"""

import itertools
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([\w./-]+)(?: [\w./-]+)*:(?!=)", MAKEFILE, re.MULTILINE))
PHONY = re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)[1].split()
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# Machines of GitHub's, and programs that they have.
MACHINES = {"ubuntu-24.04", "macos-15"}
PROGRAMS = {"apt-get", "bash", "env", "grep", "ls", "make", "pip", "python", "sudo", "test"}
SCOPES = {"contents", "pages", "id-token"}
EXPRESSION = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)
# Contexts by which others may have their text run in a script.
FOREIGN = re.compile(r"github\.(?:event|head_ref|ref_name|actor)")
FILE = re.compile(
    r"(?<![\w./$-])(?:(?:\.ci|benchmarks|docs|examples|tests|llm_mlx_promptcache)/[\w./-]+"
    r"|[\w-]+\.(?:md|toml|yml)\b)"
)
# Variables that other programs read; ours are read in a file of ours.
OTHERS_VARIABLES = {
    *("PIP_DISABLE_PIP_VERSION_CHECK", "DEBIAN_FRONTEND", "NO_MKDOCS_2_WARNING"),
    *("OPENBLAS_NUM_THREADS", "PYTHONDONTWRITEBYTECODE"),
}
SET = re.compile(r"(?:^|(?<=[\s;]))([A-Z][A-Z0-9_]+)=", re.MULTILINE)
_READERS = [ROOT / "Makefile", ROOT / ".ci" / "run", *WORKFLOWS, *(ROOT / "tests").rglob("*.py")]
READ = {
    name
    for path in _READERS
    for name in re.findall(r"""["'$({]([A-Z][A-Z0-9_]+)\b""", path.read_text())
}


# Each job of each workflow.
JOBS = [
    pytest.param(path, name, job, id=f"{path.stem}-{name}")
    for path in WORKFLOWS
    for name, job in yaml.safe_load(path.read_text())["jobs"].items()
]


def values(expression, job):
    """The texts that an expression of a job may become; those of its matrix, and its literals."""
    found = re.search(r"matrix\.(\w+)$", expression.strip())
    if found:
        return [str(one) for one in job["strategy"]["matrix"][found[1]]]
    chosen = re.findall(r"(?:&&|\|\|) '([^']*)'", expression)
    return chosen or [""]


def written(text, job):
    """All that a text with expressions may become."""
    pieces = EXPRESSION.split(text)
    choices = [[one] if at % 2 == 0 else values(one, job) for at, one in enumerate(pieces)]
    return ["".join(one) for one in itertools.product(*choices)]


def environment(job, step):
    """The variables of a step by name: all that each may be."""
    told = {**job.get("env", {}), **step.get("env", {})}
    return {name: written(str(value), job) for name, value in told.items()}


def scripts(job):
    """The scripts that a job may run, its variables put in where they are all of a word."""
    for step in job["steps"]:
        for script in written(step.get("run", ""), job):
            choices = environment(job, step)
            named = [name for name in choices if f'"${name}"' in script]
            for picked in itertools.product(*(choices[name] for name in named)):
                done = script
                for name, value in zip(named, picked, strict=True):
                    done = done.replace(f'"${name}"', value)
                yield done


def commands(script):
    """The simple commands of a script, as lists of words; what stands in `$(...)` too."""
    for inner in re.findall(r"\$\(([^()]*)\)", script):
        yield from commands(inner)
    plain = re.sub(r"\$\([^()]*\)", "x", script).replace("\\\n", " ")
    for line in plain.splitlines():
        for part in re.split(r"&&|\|\||;|\|", line):
            words = shlex.split(part, comments=True)
            while words and re.match(r"\w+=", words[0]):
                words.pop(0)
            if words:
                yield words


def targets_of(words):
    """The targets that a `make` is asked for."""
    at = words.index("make") if "make" in words else len(words)
    return [word for word in words[at + 1 :] if "=" not in word and not word.startswith("-")]


def test_there_are_workflows_and_targets():
    assert {path.stem for path in WORKFLOWS} == {"release", "test"}
    assert {"test", "lint", "device-test", ".venv/ready"} <= TARGETS


@pytest.mark.parametrize(("path", "name", "job"), JOBS)
def test_a_job_says_where_it_runs_for_how_long_and_what_it_may(path, name, job):
    assert set(written(job["runs-on"], job)) <= MACHINES
    assert 0 < job["timeout-minutes"] <= 90
    assert job["permissions"].keys() <= SCOPES
    every = yaml.safe_load(path.read_text())["jobs"]
    needed = job.get("needs", [])
    for other in [needed] if isinstance(needed, str) else needed:
        assert other in every
        assert name not in str(every[other].get("needs", ""))
    for step in job["steps"]:
        assert ("run" in step) != ("uses" in step)


@pytest.mark.parametrize(("path", "name", "job"), JOBS)
def test_expressions_name_what_there_is(path, name, job):
    text = yaml.safe_dump(job)
    ids = {step["id"] for step in job["steps"] if "id" in step}
    matrix = job.get("strategy", {}).get("matrix", {})
    for expression in EXPRESSION.findall(text):
        plain = re.sub(r"'[^']*'", "", expression)
        for context, key in re.findall(r"(?<![\w.-])(\w+)\.([\w-]+)", plain):
            assert context in {"matrix", "steps", "github", "runner", "env"}, expression
            assert context != "matrix" or key in matrix, expression
            assert context != "steps" or key in ids, expression
        for key, value in re.findall(r"matrix\.(\w+)(?:, | == )'([^']*)'", expression):
            assert any(str(one).startswith(value) for one in matrix[key]), expression
    for key in matrix:
        assert f"matrix.{key}" in text, f"nothing of this job reads {key}"


@pytest.mark.parametrize(("path", "name", "job"), JOBS)
def test_commands_files_and_targets_exist(path, name, job):
    for script in scripts(job):
        assert "${{" not in script
        checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
        assert not checked.stderr
        for file in FILE.findall(script):
            assert (ROOT / file).exists(), file
        for words in commands(script):
            assert words[0] in PROGRAMS, words
            assert set(targets_of(words)) <= TARGETS, words
            if words[0] == "bash":
                assert (ROOT / words[1]).is_file(), words


@pytest.mark.parametrize(("path", "name", "job"), JOBS)
def test_no_script_has_text_of_others_in_it(path, name, job):
    for step in job["steps"]:
        assert not FOREIGN.search(step.get("run", ""))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_jobs_hand_on_is_what_others_take(path):
    jobs = yaml.safe_load(path.read_text())["jobs"]

    def handed(action):
        return {
            (name, step["with"]["name"])
            for name, job in jobs.items()
            for step in job["steps"]
            if action in step.get("uses", "") and "name" in step["with"]
        }

    given = {name for _, name in handed("upload-artifact@")}
    assert {name for _, name in handed("download-artifact@")} == given


def test_variables_that_are_set_are_read():
    texts = [MAKEFILE, (ROOT / ".ci" / "run").read_text()]
    jobs = [job.values[2] for job in JOBS]
    texts += [script for job in jobs for script in scripts(job)]
    told = {name for text in texts for name in SET.findall(text)}
    told |= {name for job in jobs for step in job["steps"] for name in environment(job, step)}
    for path in WORKFLOWS:
        told |= yaml.safe_load(path.read_text()).get("env", {}).keys()
    assert told - OTHERS_VARIABLES <= READ
    assert {"MLX_ON_CPU", "SOAK_SHARE", "WHEEL"} <= told


def test_all_targets_that_are_no_files_are_phony():
    assert {target for target in TARGETS if not target.startswith(".")} == set(PHONY)


def test_modules_that_make_runs_exist():
    modules = re.findall(r"-m (llm_mlx_promptcache[\w.]*)", MAKEFILE)
    assert modules
    for module in modules:
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), module


def test_what_ci_runs_names_what_there_is():
    script = (ROOT / ".ci" / "run").read_text()
    assert not subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr
    stages = re.findall(r"^stage (\w+) (\d+) (.+)$", script, re.MULTILINE)
    assert {name for name, *_ in stages} >= {"lint", "tests", "soak", "wheels", "docs"}
    for _, _, command in stages:
        words = shlex.split(command)
        assert targets_of(words), command
        assert set(targets_of(words)) <= TARGETS
        for variable in words:
            name, told, value = variable.partition("=")
            for each in value.split() if told and name == "SOAK_TESTS" else ():
                assert (ROOT / each).exists(), each
    for file in FILE.findall(script):
        assert (ROOT / file).exists(), file
    limit = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    assert sum(int(minutes) for _, minutes, _ in stages) < limit["jobs"]["test"]["timeout-minutes"]


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("target", PHONY)
def test_a_target_of_make_names_files_that_exist(target):
    """As `make -n` says what it would run; nothing is run, and no environment is made."""
    asked = ["make", "-n", "-o", ".venv/ready", "-o", ".venv/docs", "BLAS=", "TAG=v0", target]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.replace(f"{ROOT}/", "").splitlines():
        files = FILE.findall(line)
        for file in files:
            assert (ROOT / file).exists(), file
        for chosen in re.findall(r' -k "?([a-z ]+)', line):  # tests' names, or their cases'
            texts = "".join((ROOT / file).read_text() for file in files)
            for word in set(chosen.split()) - {"or", "and", "not"}:
                assert re.search(rf"""def test_\w*{word}|["']{word}["']""", texts), word
