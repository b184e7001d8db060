"""Paths and settings: private, movable, and never a traceback."""

import json
import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import odd_files
import pytest
from filelock import FileLock
from worlds import watched

from llm_mlx_promptcache import config


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv(config.HOME_VARIABLE, str(tmp_path / "home"))
    return tmp_path / "home"


def test_folders_are_made_for_their_owner_only(home):
    assert config.data_folder() == home / "data"
    assert config.cache_folder() == home / "cache"
    for folder in (home, home / "data", home / "cache"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_is_there_keeps_its_mode(home):
    home.mkdir(mode=0o755)
    before = home.stat().st_mode
    config.data_folder()
    assert home.stat().st_mode == before


def test_a_place_that_cannot_be_made_is_left_to_who_writes_there(home):
    home.write_text("a file")
    assert config.cache_folder() == home / "cache"
    with pytest.raises(ValueError, match=r"can't be written to .*settings.json"):
        config.save_settings(config.Settings(default_model="x"))


def test_settings_are_kept(home):
    assert config.load_settings() == config.Settings(default_model="default")
    config.save_settings(config.Settings(default_model="some/model"))
    assert config.load_settings().default_model == "some/model"
    path = home / "data" / "settings.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_registered_models_and_limits_are_kept(home):
    model = config.RegisteredModel(name="small", reference="/models/small", aliases=("s", "tiny"))
    settings = config.Settings(
        default_model="a/b", models=(model,), memory="8GB", disk=1000, max_days=1.5
    )
    config.save_settings(settings)
    assert config.load_settings() == settings


def test_what_a_later_version_wrote_is_let_be(home):
    path = config.data_folder() / "settings.json"
    path.write_text('{"default_model": "a/b", "colour": "blue"}')
    assert config.load_settings().default_model == "a/b"


def test_names_and_aliases_stand_for_models():
    model = config.RegisteredModel(name="small", reference="/models/small", aliases=("s",))
    settings = config.Settings(default_model="a/b", models=(model,))
    for name in ("small", "mlx-cached/small", "s"):
        assert settings.model(name) == model
    for name in ("mlx-cached", "default", "c/d", "/elsewhere", "mlx-cached/s"):
        assert settings.model(name) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"default_model": 3}',
        '{"default_model": null}',
        '{"models": 3}',
        '{"models": [3]}',
        '{"models": [{"name": "a"}]}',
        '{"models": [{"name": "a", "reference": "b", "aliases": "c"}]}',
        '{"memory": []}',
        '{"disk": true}',
        '{"max_days": "old"}',
        "[" * 100_000,
        "\udcff",
    ],
)
def test_settings_that_cannot_be_read_are_named(home, text):
    path = config.data_folder() / "settings.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"settings.json can't be read .* correct or remove"):
        config.load_settings()


@pytest.mark.parametrize("kind", odd_files.MAKERS)
def test_settings_that_are_no_small_file_are_told_at_once(home, kind):
    path = config.data_folder() / "settings.json"
    odd_files.MAKERS[kind](path)
    with watched():
        told = rf"settings in {path} can't be read \(settings.json (is no regular|has .* bytes)"
        with pytest.raises(ValueError, match=told):
            config.load_settings()
        with pytest.raises(ValueError, match="correct or remove that file"):
            config.change_settings(lambda settings: settings.changed(memory=1))
        assert config.names_in_damaged_settings() == ()


def test_names_are_found_in_settings_that_are_too_long(home):
    path = config.data_folder() / "settings.json"
    model = config.RegisteredModel(name="a", reference="b", aliases=("c",))
    config.save_settings(config.Settings(models=(model,)))
    with path.open("a") as file:
        file.truncate(odd_files.GIGABYTE)
    (found,) = config.names_in_damaged_settings()
    assert (found.name, found.aliases) == ("a", ("c",))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("memory", '"lots"'),
        ("memory", "-1"),
        ("memory", '"9' + "9" * 400 + 'GB"'),
        ("memory", "0.5"),
        ("disk", '"4XB"'),
        ("disk", "true"),
        ("max_days", "0"),
        ("max_days", "-3"),
        ("max_days", "NaN"),
        ("max_days", "Infinity"),
        ("max_days", '"30d"'),
        ("default_model", '""'),
        ("keep", '"5"'),
        ("keep", '"-5m"'),
        ("keep", "300"),
        ("ahead", '"off"'),
        ("ahead", "0"),
    ],
)
def test_a_bad_value_is_told_with_the_file_its_name_and_what_to_give(home, key, value):
    path = config.data_folder() / "settings.json"
    path.write_text(f'{{"{key}": {value}}}')
    with pytest.raises(ValueError, match=r"^[^\n]{,400}; give [^\n]{,200}$") as told:
        config.load_settings()
    for part in (str(path), key, value[:20].strip('"')):
        assert part in str(told.value)


@pytest.mark.parametrize(
    ("models", "told"),
    [
        ('[{"name": "", "reference": "b"}]', 'models.0.name is ""; give a list of objects'),
        ('[{"name": "a"}]', 'models.0.reference is {"name": "a"}; give a list of objects'),
        (
            '[{"name": "a", "reference": "b"}, {"name": "c", "reference": "d", "aliases": [1]}]',
            "models.1.aliases.0 is 1; give a list of objects",
        ),
    ],
)
def test_a_bad_model_is_told_with_its_place_in_the_list(home, models, told):
    path = config.data_folder() / "settings.json"
    path.write_text(f'{{"models": {models}}}')
    with pytest.raises(ValueError, match=f"settings.json .*{re.escape(told)}"):
        config.load_settings()


def test_settings_of_code_are_checked_as_those_of_a_file_are(home):
    with pytest.raises(ValueError, match="max_days"):
        config.Settings(max_days=-1)
    with pytest.raises(ValueError, match="memory"):
        config.change_settings(lambda settings: settings.changed(memory="lots"))
    assert config.load_settings() == config.Settings()


def test_what_a_later_version_wrote_stays(home):
    path = config.data_folder() / "settings.json"
    path.write_text('{"default_model": "a/b", "colour": "blue", "memory": 5}')
    config.change_settings(lambda settings: settings.changed(disk="8GB", memory=None))
    kept = {"default_model": "a/b", "colour": "blue", "disk": "8GB"}
    assert json.loads(path.read_text()) == kept


def test_changes_at_the_same_time_are_all_kept(home):
    def register(number):
        model = config.RegisteredModel(name=f"m{number}", reference="a/b")
        config.change_settings(lambda s: s.changed(models=(*s.models, model)))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(register, range(40)))
    assert {model.name for model in config.load_settings().models} == {f"m{n}" for n in range(40)}
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (home / "data").iterdir()}
    assert files == {"settings.json": 0o600, "settings.lock": 0o600}


def test_another_process_waits_until_a_change_is_kept(home):
    script = (
        "from llm_mlx_promptcache import config\n"
        "config.change_settings(lambda s: s.changed(disk=s.memory))"
    )

    def change(settings):
        others.append(subprocess.Popen([sys.executable, "-c", script]))
        with pytest.raises(subprocess.TimeoutExpired):
            others[0].wait(2)
        return settings.changed(memory="3GB")

    others = []
    config.change_settings(change)
    assert others[0].wait(60) == 0
    assert config.load_settings() == config.Settings(memory="3GB", disk="3GB")


def test_a_change_that_fails_changes_nothing_and_holds_nobody_up(home):
    with pytest.raises(ZeroDivisionError):
        config.change_settings(lambda settings: settings.changed(memory=1 // 0))
    config.change_settings(lambda settings: settings.changed(memory=1))
    assert config.load_settings() == config.Settings(memory=1)


def test_a_system_without_locks_keeps_settings_all_the_same(home, monkeypatch):
    def no_locks(lock):
        raise NotImplementedError("locks are not supported here")

    monkeypatch.setattr(FileLock, "_acquire", no_locks)
    config.change_settings(lambda settings: settings.changed(memory=1))
    assert config.load_settings() == config.Settings(memory=1)


def test_a_home_that_nobody_has_is_named(monkeypatch):
    monkeypatch.setenv(config.HOME_VARIABLE, "~nobody-has-this-name/x")
    for ask in (config.cache_folder, config.load_settings):
        with pytest.raises(ValueError, match=r"LLM_MLX_CACHED_HOME is '~nobody-has-this-name/x'"):
            ask()


def test_the_config_imports_nothing_heavy():
    script = (
        "import sys, llm_mlx_promptcache.config\n"
        "print([m for m in ('mlx', 'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5m", 300), ("90s", 90), (" 2h ", 7200), ("1d", 86400), ("0", 0), ("0s", 0)],
)
def test_how_long_a_host_stays_is_told_in_seconds(text, seconds):
    assert config.parse_keep(text, "keep") == seconds


def test_a_host_stays_as_the_variable_says_else_the_settings_else_five_minutes(home, monkeypatch):
    monkeypatch.delenv(config.KEEP_VARIABLE, raising=False)
    assert config.keep_seconds() == 300
    config.save_settings(config.Settings(keep="forever"))
    assert config.keep_seconds() is None
    monkeypatch.setenv(config.KEEP_VARIABLE, "0")
    assert config.keep_seconds() == 0
    monkeypatch.setenv(config.KEEP_VARIABLE, "")
    assert config.keep_seconds() is None


@pytest.mark.parametrize(
    "text", ["5", "5 minutes", "-1m", "1.5h", "m", "0.0", "٣m", "9" * 7 + "s", "Forever", "5m\n6m"]
)
def test_a_bad_time_to_stay_is_refused_by_name(monkeypatch, text):
    monkeypatch.setenv(config.KEEP_VARIABLE, text)
    told = rf"^{config.KEEP_VARIABLE} is [^\n]*; give \"30m\" \(s, m, h or d\), 0 for no host"
    with pytest.raises(ValueError, match=told):
        config.keep_seconds()
