"""Imports and their times: counted, since seconds depend on what else a machine does."""

import json
import os
import subprocess
import sys

import pytest

ASK = ("-m", "mlx-cached", "Hello", "-o", "max_tokens", "2")


HEAVY = {"mlx", "mlx_lm", "transformers", "huggingface_hub", "tokenizers", "llguidance", "rich"}


def imported(home, *arguments):
    """All modules that an `llm` command imports."""
    return imported_by(home, [arguments])


def imported_by(home, commands):
    """All modules that `llm` commands import, one after the other in one process."""
    script = (
        "import json, sys, atexit\n"
        "atexit.register(lambda: sys.stderr.write(' '.join(['imported', *sys.modules])))\n"
        "from llm.cli import cli\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    cli(arguments, standalone_mode=False)\n"
        "sys.stderr.write('all ran ')"
    )
    # Where the home's path is long, a host is found by the folder for temporary files.
    found = {name: os.environ[name] for name in ("TMPDIR", "XDG_RUNTIME_DIR") if name in os.environ}
    variables = {"LLM_MLX_CACHED_KEEP": "0", **home.own(), **found}
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(commands)],
        env=variables | {"PATH": os.defpath, "HOME": str(home.folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr.partition("imported ")[0]
    assert len(commands) == 1 or "all ran " in done.stderr
    return set(done.stderr.rpartition("imported ")[2].split())


def packages(modules):
    return {name.partition(".")[0] for name in modules}


def ours(modules):
    return {name for name in modules if name.startswith("llm_mlx_promptcache")}


def test_help_imports_two_files_of_ours_and_nothing_else(bare_home):
    assert ours(imported(bare_home, "--help")) == {
        "llm_mlx_promptcache",
        "llm_mlx_promptcache.plugin",
        "llm_mlx_promptcache.commands",
    }


def test_a_command_without_a_model_imports_no_heavy_package(bare_home):
    for command in (("path",), ("settings",), ("default",)):
        found = packages(imported(bare_home, "mlx-cached", *command))
        heavy = {"mlx", "mlx_lm", "transformers", "huggingface_hub", "tokenizers", "rich"}
        assert found.isdisjoint(heavy)


@pytest.fixture(scope="module")
def asked_once(new_home, tiny_llama):
    """A home with a model and one answer of it, and what llm imports without us."""
    home = new_home()
    home.ours("default", str(tiny_llama()))
    home.llm(*ASK)
    home.by_llm_itself = imported(home, "--version")
    return home


@pytest.mark.parametrize(
    "commands",
    [
        ["stats", "tree", "ps", "pin SPAN", "unpin SPAN", "clear --older-than 1h"],
        ["clear"],
        ["check", "models"],
    ],
    ids=lambda commands: commands[0],
)
def test_c14_commands_that_look_import_no_heavy_package(asked_once, tmp_path, commands):
    """They read the index; MLX was imported for it once, and half of their time went there.

    What llm imports itself is not counted. `check` and `models` take mlx.core, which is quick
    beside the rest: arrays' types in files, and how much memory the device has.
    """
    home = asked_once.copied_to(tmp_path / "home")
    span = home.told("tree")[0]["id"]
    before = home.told("stats")["spans"]
    asked = [["mlx-cached", *one.replace("SPAN", span).split()] for one in commands]
    found = imported_by(home, asked)
    assert "llm_mlx_promptcache.commands" in found
    found -= asked_once.by_llm_itself
    assert "mlx.nn" not in found
    assert packages(found) & (HEAVY | {"numpy"}) <= ({"mlx"} if "check" in commands else set())
    assert before > 0
    assert home.told("stats")["spans"] == (0 if commands == ["clear"] else before)


def test_a_turn_that_a_host_answers_imports_no_heavy_package(bare_hosted_home, tiny_llama):
    """Not in the process that starts the host, nor in one that finds it, with a schema or not.

    llm itself imports numpy where it is installed: its sqlite_utils does.
    """
    bare_hosted_home.ours("default", str(tiny_llama()))
    for more in ((), ("-c",), ("--schema", "age int", "-o", "max_tokens", "300")):
        found = imported(bare_hosted_home, *ASK[:3], *(more or ASK[3:]))
        assert "llm_mlx_promptcache.host.client" in found
        assert packages(found).isdisjoint(HEAVY), more
    assert len(bare_hosted_home.logged(3)) == 3
    prompts = bare_hosted_home.folder / "prompts.jsonl"
    prompts.write_text('{"prompt": "Hello", "options": {"max_tokens": 2}}\n')
    found = imported(bare_hosted_home, "mlx-cached", "batch", str(prompts))
    assert "llm_mlx_promptcache.host.client" in found
    assert packages(found).isdisjoint(HEAVY)


def test_a_client_of_the_host_imports_no_heavy_package():
    script = "import sys, llm_mlx_promptcache.host.client; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    found = done.stdout.split()
    assert packages(found).isdisjoint(HEAVY | {"numpy", "llm", "jinja2", "langchain_core"})
    # Of the chat room, messages and events: forms, prompts and histories are the engine's.
    chat = {name.rpartition(".")[2] for name in ours(found) if ".chat." in name}
    assert chat == {"answer_parts", "asked", "checks", "generated", "messages"}


def test_a_plain_prompt_imports_no_grammar_and_nothing_to_show_with(bare_home, tiny_llama):
    bare_home.ours("default", str(tiny_llama()))
    found = packages(imported(bare_home, *ASK))
    assert "mlx" in found
    assert found.isdisjoint({"llguidance", "rich", "torch", "langchain_core", "datasets"})
