"""Models by name: registered, listed, fetched, forgotten; every mistake is one line."""

import re
import subprocess
import sys

import pytest

LIMIT = ("-o", "max_tokens", "4")


def one_line(error):
    (line,) = error.splitlines()
    assert line.startswith("Error: ")
    return line


def test_a_registered_model_answers_under_its_name_and_its_aliases(bare_home, tiny_llama):
    folder = tiny_llama()
    said, _ = bare_home.llm("mlx-cached", "add", str(folder), "--name", "small", "-a", "s")
    assert said == f"mlx-cached/small (also: s) is {folder}"
    bare_home.llm("-m", "mlx-cached/small", "Hello", *LIMIT)
    first = bare_home.last()
    assert first["model"] == "mlx-cached/small"
    bare_home.llm("-m", "s", "Hello", *LIMIT, "--async")
    again = bare_home.last()
    assert again["model"] == "mlx-cached/small"
    assert again["response"] == first["response"]
    assert again["details"]["prefilled"] == 1
    # It goes on under the name that it was asked by, whatever the default is.
    bare_home.llm("-c", "More", *LIMIT)
    assert bare_home.last()["details"]["cached"] > first["input_tokens"]


def test_a_model_is_forgotten_and_its_files_stay(bare_home, tiny_llama):
    folder = tiny_llama()
    bare_home.ours("add", str(folder), "-a", "one", "-a", "two")
    bare_home.ours("remove", "two")
    named = [entry["model"] for entry in bare_home.told("models")["models"]]
    assert f"mlx-cached/{folder.name}" not in named
    assert (folder / "config.json").exists()
    assert "no model 'two' is registered" in one_line(bare_home.ours("remove", "two", status=1)[1])


def test_models_tells_what_is_here_and_whether_it_fits(bare_home, tiny_llama, monkeypatch):
    folder = tiny_llama()
    size = (folder / "model.safetensors").stat().st_size
    bare_home.ours("add", str(folder), "--name", "small")
    bare_home.ours("add", "somebody/not-here-4bit")
    told = bare_home.told("models")
    found = {entry["model"]: entry for entry in told["models"]}
    small, absent = found["mlx-cached/small"], found["mlx-cached/not-here-4bit"]
    assert (small["bytes"], small["fits"], small["folder"]) == (size, True, str(folder))
    assert (absent["bytes"], absent["fits"], absent["folder"]) == (None, None, None)
    assert told["memory_for_weights"] > size
    monkeypatch.setattr("llm_mlx_promptcache.models.memory.budget", lambda: size - 1)
    assert "too large" in bare_home.ours("models")[0]


def test_what_lies_in_the_hubs_cache_is_listed(bare_home, tiny_llama):
    hub = bare_home.folder / "hub"
    snapshot = hub / "models--somebody--small" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    tiny_llama().rename(snapshot)
    (hub / "models--somebody--words" / "snapshots" / ("1" * 40)).mkdir(parents=True)
    listed, _ = bare_home.llm("mlx-cached", "models", HF_HUB_CACHE=str(hub))
    assert [line.split("\t")[:2] for line in listed.splitlines()] == [
        ["mlx-cached", "default"],
        ["not registered", "somebody/small"],
    ]


def test_a_name_or_alias_or_folder_becomes_the_default(bare_home, tiny_llama, monkeypatch):
    folder = tiny_llama()
    bare_home.ours("add", str(folder), "--name", "small", "-a", "s")
    for name in ("s", "small", "mlx-cached/small", str(folder)):
        bare_home.ours("default", "default")
        assert bare_home.ours("default", name)[0] == str(folder)
    monkeypatch.chdir(folder.parent)
    assert bare_home.told("default", folder.name) == {"default_model": str(folder)}


@pytest.mark.parametrize(
    "name", ["nobody", "/nowhere", "~nobody-has-this-name/x", "mlx-cached/no me"]
)
def test_what_is_no_model_does_not_become_the_default(bare_home, name):
    assert "no folder with a model" in one_line(bare_home.ours("default", name, status=1)[1])
    assert bare_home.told("default") == {"default_model": "default"}
    for given in ("somebody/not-here-4bit", "mlx-cached", "default"):
        bare_home.ours("default", given)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("/nowhere",), "no folder with a model"),
        (("just-a-word",), "no folder with a model"),
        (("somebody/a", "--name", "taken"), "'mlx-cached/taken' is a model's name already"),
        (("somebody/a", "-a", "t"), "'t' is a model's name already"),
        (("somebody/a", "-a", "gpt-4o"), "'gpt-4o' is a model's name already"),
        (("somebody/a", "-a", "mlx-cached"), "'mlx-cached' is a model's name already"),
        (("somebody/a", "--name", " a"), "is no name"),
        (("somebody/a", "-a", "a\nb"), "is no name"),
    ],
)
def test_a_model_that_cannot_be_added_changes_nothing(bare_home, arguments, words):
    bare_home.ours("add", "somebody/taken", "-a", "t")
    before = bare_home.told("models")
    assert words in one_line(bare_home.ours("add", *arguments, status=1)[1])
    assert bare_home.told("models") == before


def test_damaged_settings_are_told_and_cost_other_plugins_nothing(bare_home):
    settings = bare_home.folder / "mlx" / "data" / "settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"models": [{"name": 3}]}')
    listed, told = bare_home.llm("models", "list")
    assert "gpt-4o" in listed
    (line,) = told.splitlines()
    assert re.search(r"settings.json can't be read .*models\.0\.name is 3; give", line)
    assert "settings.json" in one_line(bare_home.ours("models", status=1)[1])


def test_damaged_settings_are_told_once_a_process(bare_home):
    settings = bare_home.folder / "mlx" / "data" / "settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"default_model": null}')
    script = "import llm\nfor _ in range(3): print(llm.get_model('mlx-cached').model_id)"
    done = subprocess.run(
        [sys.executable, "-c", script], env=bare_home.environment(), capture_output=True, text=True
    )
    assert done.stdout.split() == ["mlx-cached"] * 3
    (line,) = done.stderr.splitlines()
    assert "default_model is null" in line


def test_a_home_that_nobody_has_is_one_line(bare_home):
    variables = {"LLM_MLX_CACHED_HOME": "~nobody-has-this-name/x"}
    for command in (("mlx-cached", "path"), ("-m", "mlx-cached", "Hello")):
        _, told = bare_home.llm(*command, status=1, **variables)
        assert re.match("Error: LLM_MLX_CACHED_HOME is ", told.splitlines()[-1])


def test_a_model_that_is_nowhere_cannot_be_downloaded(bare_home):
    assert "unknown model" in one_line(bare_home.ours("download", "nowhere", status=1)[1])


def test_download_of_what_is_here_fetches_nothing(bare_home, tiny_llama):
    folder = tiny_llama()
    bare_home.ours("add", str(folder), "-a", "t")
    size = (folder / "model.safetensors").stat().st_size
    found = {"reference": str(folder), "folder": str(folder), "bytes": size}
    assert bare_home.told("download", "t") == found
