"""What is imported, and when: counted, since seconds depend on what else a machine does."""

import subprocess
import sys

import pytest

ASK = ("-m", "mlx-cached", "Hello", "-o", "max_tokens", "2")


def imported(home, *arguments):
    """All modules that an `llm` command imports."""
    script = (
        "import sys, atexit\n"
        "atexit.register(lambda: sys.stderr.write(' '.join(['imported', *sys.modules])))\n"
        "from llm.cli import cli\n"
        "cli()"
    )
    variables = {
        "LLM_MLX_CACHED_KEEP": "0",
        "LLM_USER_PATH": str(home.folder / "llm"),
        "LLM_MLX_CACHED_HOME": str(home.folder / "mlx"),
    }
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=variables | {"PATH": "", "HOME": str(home.folder)},
        capture_output=True,
        text=True,
        check=True,
    )
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


@pytest.mark.parametrize(
    "command", ["stats", "tree", "pin", "unpin", "clear", "clear --older-than"]
)
def test_a_command_that_looks_at_the_cache_imports_no_heavy_package(bare_home, tiny_llama, command):
    """It reads the index; MLX was imported for it once, and half of its time went there."""
    bare_home.ours("default", str(tiny_llama()))
    bare_home.llm(*ASK)
    span = bare_home.told("tree")[0]["id"]
    if command == "unpin":
        bare_home.ours("pin", span)
    more = {"pin": [span], "unpin": [span], "clear --older-than": ["1h"]}.get(command, [])
    before = bare_home.told("stats")["spans"]
    found = packages(imported(bare_home, "mlx-cached", *command.split(), *more))
    assert found.isdisjoint({"mlx", "mlx_lm", "transformers", "huggingface_hub", "tokenizers"})
    assert before > 0
    assert bare_home.told("stats")["spans"] == (0 if command == "clear" else before)


def test_a_plain_prompt_imports_no_grammar_and_nothing_to_show_with(bare_home, tiny_llama):
    bare_home.ours("default", str(tiny_llama()))
    found = packages(imported(bare_home, *ASK))
    assert "mlx" in found
    assert found.isdisjoint({"llguidance", "rich", "torch", "langchain_core", "datasets"})
