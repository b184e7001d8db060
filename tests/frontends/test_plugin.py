"""The plugin as llm sees it before any model is run."""

import functools
import subprocess
import sys

import llm
import pytest

from llm_mlx_promptcache.config import Settings, save_settings
from llm_mlx_promptcache.llm_adapter.models import AsyncMlxCached, MlxCached

HEAVY = ("mlx", "mlx_lm", "transformers", "huggingface_hub", "tokenizers", "numpy")


@functools.cache
def modules_after(code):
    """The modules that a fresh process has imported after `code`."""
    command = [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    "module", ["plugin", "llm_adapter.models", "llm_adapter.options", "commands", "config"]
)
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
    assert model.supports_schema
    assert model.supports_tools
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


def test_a_default_model_that_went_away_is_one_line_and_status_1(bare_home, tiny_llama, tmp_path):
    folder = tiny_llama().rename(tmp_path / "model")
    bare_home.llm("mlx-cached", "default", str(folder))
    folder.rename(tmp_path / "elsewhere")
    _, error = bare_home.llm("-m", "mlx-cached", "hi", status=1)
    (line,) = error.splitlines()
    assert line.startswith("Error: ")
    assert str(folder) in line


@pytest.fixture
def damaged(tiny_llama):
    folder = tiny_llama()
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    return folder


def one_line(error):
    (line,) = error.splitlines()
    assert line.startswith("Error: ")
    return line


def test_a_damaged_model_folder_is_one_line_and_status_1(bare_home, damaged):
    bare_home.llm("mlx-cached", "default", str(damaged))
    assert str(damaged) in one_line(bare_home.llm("-m", "mlx-cached", "hi", status=1)[1])


def test_bad_prompts_are_one_line_and_status_1_and_lose_nothing(bare_home, tiny_llama):
    bare_home.llm("mlx-cached", "default", str(tiny_llama()))
    limit = ("-o", "max_tokens", "4")
    bare_home.llm("-m", "mlx-cached", "Hello", *limit)
    kept = bare_home.told("tree")
    assert "empty" in one_line(bare_home.llm("-m", "mlx-cached", "", *limit, status=1)[1])
    long = one_line(bare_home.llm("-m", "mlx-cached", "word " * 3000, *limit, status=1)[1])
    assert "context" in long
    assert bare_home.told("tree") == kept
    bare_home.llm("-m", "mlx-cached", "Hello", *limit)
    assert bare_home.last()["details"]["prefilled"] == 1


def test_a_truncated_answer_is_replayed_too(bare_home, tiny_llama):
    bare_home.llm("mlx-cached", "default", str(tiny_llama()))
    bare_home.llm("-m", "mlx-cached", "Hello", "-o", "max_tokens", "4")
    first = bare_home.last()
    bare_home.llm("-c", "Again", "-o", "max_tokens", "4")
    second = bare_home.last()
    assert second["details"]["cached"] == first["input_tokens"] + first["output_tokens"]


def test_the_disk_can_be_switched_off(bare_home, tiny_llama, monkeypatch):
    bare_home.llm("mlx-cached", "default", str(tiny_llama()))
    monkeypatch.setenv("LLM_MLX_CACHED_DISK", "0")
    bare_home.llm("-m", "mlx-cached", "Hello", "-o", "max_tokens", "4")
    monkeypatch.delenv("LLM_MLX_CACHED_DISK")
    assert bare_home.llm("mlx-cached", "stats")[0].startswith("0 spans")


def test_the_async_model_goes_on_where_the_sync_one_ended(bare_home, tiny_llama):
    bare_home.llm("mlx-cached", "default", str(tiny_llama()))
    first, _ = bare_home.llm("-m", "mlx-cached", "Hello", "-o", "max_tokens", "4")
    one = bare_home.last()
    again, _ = bare_home.llm("-m", "mlx-cached", "Hello", "-o", "max_tokens", "4", "--async")
    assert again == first
    assert bare_home.last()["details"]["prefilled"] == 1
    bare_home.llm("-c", "More", "-o", "max_tokens", "4", "--async")
    assert bare_home.last()["details"]["cached"] >= one["input_tokens"] + one["output_tokens"] - 1


def test_stop_strings_as_options(bare_home, tiny_llama):
    bare_home.llm("mlx-cached", "default", str(tiny_llama()))
    limit = ("-o", "max_tokens", "12")
    whole, _ = bare_home.llm("-m", "mlx-cached", "Hello", *limit)
    stop = whole[2:4]
    cut, _ = bare_home.llm("-m", "mlx-cached", "Hello", *limit, "-o", "stop", stop)
    both, _ = bare_home.llm("-m", "mlx-cached", "Hello", *limit, "-o", "stop", f'["{stop}", "q"]')
    assert whole[: whole.index(stop)].strip() == cut
    assert whole.startswith(both)
    assert bare_home.last()["response_json"]["finish_reason"] == "stop"


@pytest.mark.parametrize("kind", [MlxCached, AsyncMlxCached])
def test_a_registered_model_has_its_own_name_and_reference(kind, own_cache):
    assert (kind().model_id, kind("small").model_id) == ("mlx-cached", "mlx-cached/small")
    save_settings(Settings(default_model="/the/default"))
    assert kind()._resolve() == "/the/default"
    assert kind("small", "/its/own")._resolve() == "/its/own"
