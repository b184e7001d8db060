"""One engine a model, all models within one budget of memory."""

import os
import shutil
import threading

import pytest

from llm_mlx_promptcache.cache.manifest import FilesChanged, Manifest
from llm_mlx_promptcache.chat.messages import Message
from llm_mlx_promptcache.config import change_settings
from llm_mlx_promptcache.engine import pool
from llm_mlx_promptcache.engine.events import Loading, Progress, TextDelta
from llm_mlx_promptcache.engine.request import GenerationRequest
from llm_mlx_promptcache.models import default_model, loading
from llm_mlx_promptcache.models.errors import ModelLoadError
from llm_mlx_promptcache.models.memory import weights_of
from llm_mlx_promptcache.models.references import spelled


@pytest.fixture
def folders(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path))
    yield [tiny_llama(seed=seed) for seed in range(3)]
    pool.close_engines()


def ask(folder, text="One?", **more):
    *_, last = pool.engine_for(str(folder)).generate(
        GenerationRequest((Message("user", text),), **{"max_tokens": 6, **more})
    )
    return last


def test_the_model_that_was_not_asked_longest_makes_room(folders, monkeypatch):
    monkeypatch.setattr(pool, "budget", lambda: 2 * weights_of(folders[0]))
    first = ask(folders[0])
    ask(folders[1])
    ask(folders[0], "Two?")
    ask(folders[2])
    assert [pool._engines[str(folder)].loaded for folder in folders] == [True, False, True]
    again = ask(folders[1])
    assert again.usage.prefilled == 1  # what it had computed is still there
    assert [pool._engines[str(folder)].loaded for folder in folders] == [False, True, True]
    assert ask(folders[0]).ids == first.ids
    assert ask(folders[0]).usage.prefilled == 1


def test_a_model_that_answers_is_not_unloaded(folders, monkeypatch):
    monkeypatch.setattr(pool, "budget", lambda: 1)
    engine = pool.engine_for(str(folders[0]))
    events = engine.generate(GenerationRequest((Message("user", "One?"),), max_tokens=400))
    next(event for event in events if isinstance(event, Progress))
    ask(folders[1])
    assert engine.loaded
    *_, last = events
    assert last.usage.generated == 400


def test_threads_over_models_that_do_not_fit_together(folders, monkeypatch):
    monkeypatch.setattr(pool, "budget", lambda: 1)
    alone = [ask(folder).ids for folder in folders]
    failed = []

    def work(number):
        for turn in range(4):
            at = (number + turn) % 3
            if ask(folders[at]).ids != alone[at]:
                failed.append(at)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert pool.shared_cache().check() == []


def test_a_model_whose_files_changed_is_loaded_anew_where_it_must_be_current(folders, tiny_llama):
    folder, other = folders[0], tiny_llama(seed=5)
    before = ask(folder)
    loaded = pool._read[str(folder)]
    assert pool.current_engine_for(str(folder)).loaded
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    assert not pool.current_engine_for(str(folder)).loaded
    after = ask(folder)
    assert pool.current_engine_for(str(folder)).loaded
    assert pool._read[str(folder)] != loaded
    assert after.ids == ask(other).ids != before.ids


def test_a_model_that_answers_is_not_loaded_anew(folders):
    engine = pool.engine_for(str(folders[0]))
    events = engine.generate(GenerationRequest((Message("user", "One?"),), max_tokens=400))
    next(event for event in events if isinstance(event, TextDelta))
    (folders[0] / "config.json").touch()
    assert pool.current_engine_for(str(folders[0])).loaded
    *_, last = events
    assert last.usage.generated == 400
    assert not pool.current_engine_for(str(folders[0])).loaded


def test_a_model_of_which_nothing_is_cached_is_loaded_anew(folders, monkeypatch):
    """Its files changed while it was loaded: for the next process they may be sound."""

    def changed(manifest):
        raise FilesChanged("a file changed")

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "check", changed)
        assert ask(folders[0]).usage.cached == 0
    assert not pool.current_engine_for(str(folders[0])).loaded
    ask(folders[0])
    assert pool.current_engine_for(str(folders[0])).loaded


def test_a_default_model_in_a_linked_home_is_current(folders, monkeypatch, tmp_path):
    """Each prompt had loaded it anew: a host was as slow as none."""
    link = tmp_path / "link"
    link.symlink_to(folders[0])
    monkeypatch.setattr(loading, "ensure_default_model", lambda *_, **__: link)
    monkeypatch.setattr(default_model, "default_folder", lambda _: link)
    ask("default")
    assert pool.current_engine_for("default").loaded
    link.unlink()
    link.symlink_to(folders[1])
    assert not pool.current_engine_for("default").loaded


def test_a_model_that_is_gone_is_not_kept_where_it_must_be_current(folders):
    ask(folders[0])
    shutil.move(folders[0], folders[0].with_name("elsewhere"))
    engine = pool.current_engine_for(str(folders[0]))
    assert not engine.loaded
    with pytest.raises(ModelLoadError):
        ask(folders[0])


def test_an_engine_that_was_never_asked_has_nothing_to_give_back(folders):
    engine = pool.engine_for(str(folders[0]))
    assert engine.unload()
    assert ask(folders[0]).usage.generated == 6
    assert engine.unload()
    assert not engine.loaded


def test_one_model_has_one_engine_however_its_folder_is_spelled(folders, monkeypatch):
    folder = folders[0]
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    (folder.parent / "link").symlink_to(folder)
    engine = pool.engine_for(str(folder))
    for spelling in (folder.name, f"./{folder.name}/", f"~/{folder.name}", "link", f"{folder}/."):
        assert pool.engine_for(spelling) is engine
    ask(f"./{folder.name}")
    pool.close_engines()
    assert [label for label, *_ in pool.disk_store().by_model()] == [str(folder)]


def test_an_adapter_keeps_its_place_in_a_reference(folders, monkeypatch):
    model, adapter = folders[:2]
    monkeypatch.chdir(model.parent)
    engine = pool.engine_for(f"{model}@{adapter}")
    assert pool.engine_for(os.path.relpath(model) + "@" + os.path.relpath(adapter)) is engine
    assert pool.engine_for(str(model)) is not engine
    assert list(pool._engines) == [f"{model}@{adapter}", str(model)]


@pytest.mark.parametrize("name", ["default", "somebody/small", "~nobody-has-this-name/x", "a\0b"])
def test_what_is_no_folder_keeps_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "default").mkdir()
    assert spelled(name) == name
    assert spelled(f"{name}@") == name


def test_that_a_model_loads_is_told_before_its_prompts_progress(folders):
    events = pool.engine_for(str(folders[0])).generate(
        GenerationRequest((Message("user", "One?"),), max_tokens=2)
    )
    loading = Loading(f"loading the model {folders[0]}", aloud=False)
    first, *others = events
    assert first == loading
    assert [event for event in others if isinstance(event, Loading)] == []  # once, in many steps
    again = pool.engine_for(str(folders[0])).generate(
        GenerationRequest((Message("user", "One?"),), max_tokens=2)
    )
    assert isinstance(next(again), Progress)
    again.close()


@pytest.mark.parametrize(
    ("variable", "setting", "works"),
    [(None, None, True), (None, True, True), (None, False, False), ("0", True, False)],
)
def test_next_turns_are_worked_on_unless_the_user_says_not(
    folders, monkeypatch, variable, setting, works
):
    monkeypatch.delenv(pool.AHEAD_SWITCH)
    if variable is not None:
        monkeypatch.setenv(pool.AHEAD_SWITCH, variable)
    change_settings(lambda old: old.changed(ahead=setting))
    made = []

    def load(reference, tell):
        made.append(loads(reference, tell))
        return made[-1]

    loads = pool._load
    monkeypatch.setattr(pool, "_load", load)
    ask(folders[0])
    assert (made[0].ahead is not None) == works
