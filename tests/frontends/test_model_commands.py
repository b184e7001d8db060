"""Models by name: registered, listed, fetched, forgotten; every mistake is one line."""

import re

import llm
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
    assert "'two' is not a registered name" in one_line(
        bare_home.ours("remove", "two", status=1)[1]
    )


def test_c6_a_removed_default_is_the_default_no_longer(bare_home, tiny_llama):
    folder = tiny_llama()
    bare_home.ours("add", str(folder), "--name", "small")
    bare_home.ours("add", "somebody/other")
    bare_home.ours("default", "small")
    (bare_home.folder / "llm" / "default_model.txt").write_text("mlx-cached/small")
    said = bare_home.ours("remove", "small")[0].splitlines()
    assert said == [
        "mlx-cached/small is no longer registered",
        "it was the default, which is the embedded model again;"
        f" llm mlx-cached default {folder} restores it",
        "it was llm's own default, which is mlx-cached now",
    ]
    assert bare_home.told("default") == {"default_model": "default", "llm_default": "mlx-cached"}


def test_a_default_that_another_name_has_too_stays(bare_home, tiny_llama):
    folder = str(tiny_llama())
    for name in ("one", "two", "three"):
        bare_home.ours("add", folder, "--name", name)
    bare_home.ours("default", "one")
    told = bare_home.ours("remove", folder, status=1)[1]
    assert "is registered as mlx-cached/one, mlx-cached/two, mlx-cached/three" in one_line(told)
    bare_home.ours("remove", "one")
    gone = bare_home.told("remove", "two")
    assert (gone["was_default"], gone["was_llm_default"]) == (False, False)
    assert bare_home.told("default")["default_model"] == folder


def test_plain_llm_asks_the_default_where_it_is_made_llms_own(bare_home, tiny_llama):
    assert bare_home.told("default")["llm_default"] == llm.DEFAULT_MODEL
    bare_home.llm("mlx-cached", "default", str(tiny_llama()), "--llm")
    bare_home.llm("Hello", *LIMIT)
    assert bare_home.last()["model"] == "mlx-cached"


def test_an_llm_whose_default_cannot_be_written_is_one_line(bare_home):
    (bare_home.folder / "llm" / "default_model.txt").mkdir(parents=True)
    told = bare_home.ours("default", "somebody/a", "--llm", status=1)[1]
    assert "llm's own default can't be written (Is a directory: " in one_line(told)


def test_c5_a_conversation_that_goes_on_with_another_model_says_so_once(bare_home, tiny_llama):
    one, two = str(tiny_llama()), str(tiny_llama(seed=1))
    bare_home.ours("default", one)

    def told(*arguments):
        lines = bare_home.llm(*arguments, *LIMIT)[1].splitlines()
        return [line for line in lines if not line.startswith("the answer was cut")]

    assert told("-m", "mlx-cached", "Hello") == told("-c", "More") == []
    bare_home.ours("default", two)
    other = f"this conversation was with {one} until now; {two} answers from here on"
    assert told("-c", "And more") == [other]
    assert told("-c", "The end") == []
    answers = [entry["response_json"]["reference"] for entry in bare_home.logged(4)]
    assert sorted(answers) == sorted([one, one, two, two])
    # What was answered then is told of then, whatever the default is now.
    bare_home.ours("default", one)
    last = bare_home.last()
    found = bare_home.told("explain", last["id"])
    assert found["now"]["prompt"] == last["input_tokens"]
    assert found["now"]["stored"] > 0


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
    main = hub / "models--somebody--small" / "refs" / "main"
    main.parent.mkdir()
    main.write_text("0" * 40)
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
    bare_home.ours("remove", "s")
    assert bare_home.told("default", folder.name)["default_model"] == str(folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nobody", "'nobody' is not a registered name, an alias, a local folder or a hub id"),
        ("/nowhere", "there is no folder '/nowhere'"),
        ("~nobody-has-this-name/x", "there is no folder '~nobody-has-this-name/x'"),
        ("mlx-cached/no me", "no model 'mlx-cached/no me' is registered"),
        ("/", "no folder with a model: it has no config.json"),
    ],
)
def test_what_is_no_model_does_not_become_the_default(bare_home, name, words):
    assert words in one_line(bare_home.ours("default", name, status=1)[1])
    assert bare_home.told("default")["default_model"] == "default"
    for given in ("somebody/not-here-4bit", "mlx-cached", "default"):
        bare_home.ours("default", given)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("/nowhere",), "there is no folder '/nowhere'"),
        (("just-a-word",), "a local folder or a hub id"),
        (("somebody/a", "--name", "default"), "'default' is the embedded model"),
        (("somebody/a", "--name", "taken"), "'mlx-cached/taken' is a model's name already"),
        (("somebody/a", "-a", "t"), "'t' is a model's name already"),
        (("somebody/a", "-a", "gpt-4o"), "'gpt-4o' is a model's name already"),
        (("somebody/a", "-a", "mlx-cached"), "'mlx-cached' is a model's name already"),
        (("somebody/a", "--name", " a"), "is not a name"),
        (("somebody/a", "-a", "a\nb"), "is not a name"),
    ],
)
def test_a_model_that_cannot_be_added_changes_nothing(bare_home, arguments, words):
    bare_home.ours("add", "somebody/taken", "-a", "t")
    before = bare_home.told("models")
    assert words in one_line(bare_home.ours("add", *arguments, status=1)[1])
    assert bare_home.told("models") == before


DAMAGED = """{
  "default_model": "a/b",
  "models": [
    {"name": "small \\u00e9", "reference": "/models/small", "aliases": ["s", "t"]},
    {"name": "other", "reference": "a/b"}
    {"name"
"""


@pytest.mark.parametrize("text", [DAMAGED, DAMAGED.replace("\n", ""), '{"models": [{"name": 3}]}'])
def test_c12_damaged_settings_are_one_line_of_our_own_models_only(bare_home, text):
    settings = bare_home.folder / "mlx" / "data" / "settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(text)
    listed, told = bare_home.llm("models", "list")
    assert "gpt-4o" in listed
    assert told == ""
    ours = ("mlx-cached", "mlx-cached/small é", "s", "t", "mlx-cached/other")
    for name in ours if text.startswith(DAMAGED[:1] + "\n") else ours[:1]:
        _, told = bare_home.llm("-m", name, "Hello", status=1)
        assert re.search(r"settings.json can't be read \(", one_line(told))
    assert "settings.json" in one_line(bare_home.ours("models", status=1)[1])


def test_damaged_settings_are_told_once_with_a_host_too(bare_hosted_home):
    settings = bare_hosted_home.folder / "mlx" / "data" / "settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"models": [{"name": 3}]}')
    told = one_line(bare_hosted_home.llm("-m", "mlx-cached", "Hello", status=1)[1])
    assert re.search(r"settings.json can't be read .*models\.0\.name is 3; give", told)


def test_a_home_that_nobody_has_is_one_line(bare_home):
    variables = {"LLM_MLX_CACHED_HOME": "~nobody-has-this-name/x"}
    for command in (("mlx-cached", "path"), ("-m", "mlx-cached", "Hello")):
        _, told = bare_home.llm(*command, status=1, **variables)
        assert re.match("Error: LLM_MLX_CACHED_HOME is ", told.splitlines()[-1])


def test_a_home_that_is_no_folder_is_one_line(bare_home):
    variables = {"LLM_MLX_CACHED_HOME": "/dev/null"}
    wanted = "Error: /dev/null is no folder; set LLM_MLX_CACHED_HOME to one"
    for command in (("mlx-cached", "stats"), ("-m", "mlx-cached", "Hello")):
        assert one_line(bare_home.llm(*command, status=1, **variables)[1]) == wanted


def test_a_model_that_is_nowhere_cannot_be_downloaded(bare_home):
    told = bare_home.ours("download", "nowhere", status=1)[1]
    assert "a local folder or a hub id" in one_line(told)


def test_download_of_a_folder_without_weights_is_one_line(bare_home, tmp_path):
    told = bare_home.ours("download", str(tmp_path), status=1)[1]
    assert f"no model files are in {tmp_path}" in one_line(told)


def test_download_of_what_is_here_fetches_nothing(bare_home, tiny_llama):
    folder = tiny_llama()
    bare_home.ours("add", str(folder), "-a", "t")
    size = (folder / "model.safetensors").stat().st_size
    found = {"reference": str(folder), "folder": str(folder), "bytes": size}
    assert bare_home.told("download", "t") == found
