"""What is imported, and when: counted, since seconds depend on what else a machine does."""

import subprocess
import sys

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


def test_a_plain_prompt_imports_no_grammar_and_nothing_to_show_with(bare_home, tiny_llama):
    bare_home.ours("default", str(tiny_llama()))
    found = packages(imported(bare_home, *ASK))
    assert "mlx" in found
    assert found.isdisjoint({"llguidance", "rich", "torch", "langchain_core", "datasets"})
