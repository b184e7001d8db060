"""The plugin as llm sees it before any model is run."""

import subprocess
import sys

import llm
import pytest

HEAVY = ("mlx", "mlx_lm", "transformers", "huggingface_hub", "tokenizers", "numpy")


def modules_after(code):
    """What a fresh process has imported after `code`."""
    command = [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("module", ["plugin", "llm_models", "commands", "config"])
def test_importing_the_front_ends_imports_nothing_heavy(module):
    ours = modules_after(f"import llm_mlx_promptcache.{module}")
    # llm itself imports numpy where it finds it.
    assert (ours - modules_after("import llm")).isdisjoint(HEAVY)


def test_importing_the_package_and_the_langchain_adapter_loads_no_mlx():
    assert "mlx" not in modules_after("import llm_mlx_promptcache, langchain_adapter")


def test_llm_knows_the_model_and_its_options():
    model = llm.get_model("mlx-cached")
    assert model.can_stream
    fields = model.Options.model_json_schema()["properties"]
    assert {"temperature", "max_tokens", "seed", "cache"} <= set(fields)
    assert all(field.get("description") for field in fields.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-m", "mlx-cached/nobody", "hi"), "Unknown model"),
        (("-m", "mlx-cached", "hi", "-o", "top_p", "7"), "top_p"),
        (("-m", "mlx-cached", "hi", "-o", "max_tokens", "0"), "max_tokens"),
    ],
)
def test_a_wrong_call_is_one_line_and_status_1(bare_home, arguments, words):
    _, error = bare_home.llm(*arguments, status=1)
    assert error.startswith("Error: ")
    assert words in error


def test_a_default_model_that_is_nowhere_is_one_line_and_status_1(bare_home):
    bare_home.llm("mlx-cached", "default", "/nowhere/at/all")
    _, error = bare_home.llm("-m", "mlx-cached", "hi", status=1)
    (line,) = error.splitlines()
    assert line.startswith("Error: ")
    assert "/nowhere/at/all" in line
