"""Hello: what client and host are, told without a secret, and every reason that they do not fit."""

import copy
import json
import os
import shutil
import stat
import threading
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import watched

from llm_mlx_promptcache import config
from llm_mlx_promptcache.host import hello as hellos
from llm_mlx_promptcache.host.hello import bare_hello, difference, hello
from llm_mlx_promptcache.host.place import HostUnavailable, host_place

SECRET = "hf_thisIsMyAccessToken"
MATTERS = [
    "LLM_MLX_CACHED_DISK",
    "HF_TOKEN",
    "HF_HUB_OFFLINE",
    "HUGGING_FACE_HUB_TOKEN",
    "HUGGINGFACE_HUB_CACHE",
    "TZ",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MLX_METAL_JIT",
    "PYTHONPATH",
    "HTTPS_PROXY",
    "https_proxy",
    "no_proxy",
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path)})
    monkeypatch.setenv(config.HOME_VARIABLE, str(tmp_path / "home"))
    return host_place()


def test_a_hello_is_plain_data_that_is_the_same_each_time(place):
    told = hello(place)
    assert json.loads(json.dumps(told)) == told == hello(place)
    assert set(told) == {"protocol", "build", "settings", "environment", "keep"}
    assert told["keep"] == 300
    assert told["build"]["mlx"]
    assert difference(told, hello(place)) == ""


def test_for_ever_is_null(place, monkeypatch):
    monkeypatch.setenv(config.KEEP_VARIABLE, "forever")
    assert hello(place)["keep"] is None


def test_no_secret_is_in_it_nor_a_digest_that_can_be_tried(place, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{SECRET}@proxy")
    (tmp_path / "token").write_text(SECRET + "\n")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    told = json.dumps(hello(place))
    assert "hub token" in told
    for text in (SECRET, SECRET[3:], sha256(SECRET.encode()).hexdigest()[:16]):
        assert text not in told
    place.salt.unlink()
    assert set(hello(place)["environment"].values()).isdisjoint(
        json.loads(told)["environment"].values()
    )


@pytest.mark.parametrize("name", MATTERS)
def test_another_environment_is_told_by_its_names(place, monkeypatch, name):
    without = hello(place)
    monkeypatch.setenv(name, "a")
    one = hello(place)
    assert difference(without, one) == difference(one, without)
    assert difference(one, without) == f"its environment is another ({name})"
    monkeypatch.setenv(name, "b")
    assert difference(one, hello(place)) == f"its environment is another ({name})"


@pytest.mark.parametrize("name", [config.KEEP_VARIABLE, "PATH", "LANG", "PWD", "LD_PRELOAD", "X"])
def test_what_changes_no_answer_is_not_compared(place, monkeypatch, name):
    one = hello(place)
    monkeypatch.setenv(name, "30m")
    assert difference(one, hello(place)) == ""


def test_who_is_logged_in_to_the_hub_is_compared(place, tmp_path):
    out = hello(place)
    token = tmp_path / ".cache" / "huggingface" / "token"
    token.parent.mkdir(parents=True)
    token.write_text(SECRET)
    logged_in = hello(place)
    assert difference(out, logged_in) == "its environment is another (hub token)"
    token.write_text(SECRET + "2")
    assert difference(logged_in, hello(place)) == "its environment is another (hub token)"


def test_a_token_that_can_not_be_read_is_none_and_never_waited_for(place, tmp_path, monkeypatch):
    without = hello(place)["environment"]
    token = tmp_path / ".cache" / "huggingface" / "token"
    token.parent.mkdir(parents=True)
    os.mkfifo(token)
    assert hello(place)["environment"] == without
    token.unlink()
    token.mkdir()
    assert hello(place)["environment"] == without
    token.rmdir()
    token.write_bytes(b"x" * 10_000_000)
    assert set(hello(place)["environment"]) == {*without, "hub token"}


def test_another_home_is_another_place_to_read_models_from(place, tmp_path, monkeypatch):
    one = hello(place)
    monkeypatch.setenv("HOME", str(tmp_path / "another"))
    assert difference(one, hello(place)) == "its environment is another (hub folder)"


def test_one_folder_is_one_however_it_is_written(place, tmp_path, monkeypatch):
    (tmp_path / "hub").mkdir()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    whole = hello(place)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", "hub")
    monkeypatch.setenv(config.HOME_VARIABLE, "home")
    assert difference(whole, hello(place)) == ""
    monkeypatch.chdir(tmp_path / "hub")
    monkeypatch.setenv(config.HOME_VARIABLE, "../home")
    assert "HF_HOME" in difference(whole, hello(place))


def test_a_client_whose_folder_is_gone_says_hello_where_no_path_is_relative_to_it(
    place, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    elsewhere = hello(place)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert hello(place) == elsewhere
    monkeypatch.setenv("HF_HOME", "hub")
    with pytest.raises(HostUnavailable, match=r"^the folder that this runs in is gone \(No such"):
        hello(place)


def test_many_names_are_cut(place, monkeypatch):
    one = hello(place)
    for number in range(9):
        monkeypatch.setenv(f"HF_{number}", "x")
    assert difference(one, hello(place)).endswith("(HF_0, HF_1, HF_2, HF_3, HF_4, ...)")


@pytest.mark.parametrize("name", ["memory", "disk", "max_days", "ahead"])
def test_other_settings_are_told_by_their_names(place, name):
    one = hello(place)
    other = copy.deepcopy(one)
    other["settings"][name] = "2GB"
    assert difference(one, other) == f"its settings are others ({name})"


def test_settings_are_those_that_a_host_is_bound_by(place):
    one = hello(place)
    config.save_settings(config.Settings(default_model="a/b", keep="1h"))
    assert difference(one, hello(place)) == ""
    config.save_settings(config.Settings(memory="2GB", disk=30_000))
    assert difference(one, hello(place)) == "its settings are others (disk, memory)"


def test_settings_that_can_not_be_read_are_told_as_everywhere(place):
    (config.data_folder() / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings.json can't be read"):
        hello(place)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("package", "it runs llm-mlx-promptcache {}, and not another"),
        ("mlx", "it runs mlx {}, and not another"),
        ("mlx_lm", "it runs mlx-lm {}, and not another"),
        ("python", "it runs python {}, and not another"),
        ("prefix", "it runs Python in {}, and not another"),
        ("digest", "its packages' files have changed since it was started"),
    ],
)
def test_another_build_is_told_by_what_differs(place, name, told):
    one = hello(place)
    other = copy.deepcopy(one)
    other["build"][name] = "another"
    assert difference(one, other) == told.format(one["build"][name])


def test_a_bare_hello_differs_in_the_protocol_alone(place):
    one = hello(place)
    one["build"]["mlx"] = "another"
    assert difference(one, bare_hello()) == ""
    assert difference(one, {"protocol": 2}) == "it speaks protocol 1, and not 2"
    assert (
        difference(one, {**hello(place), "protocol": None}) == "it speaks protocol 1, and not None"
    )
    assert difference(one, {}) == "it speaks protocol 1, and not None"


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(
    theirs=st.dictionaries(st.sampled_from(["build", "settings", "environment", "x"]), JSON),
    protocol=st.just(1) | JSON,
)
def test_any_hello_is_compared_and_told_in_one_line(theirs, protocol):
    mine = {
        "protocol": 1,
        "build": dict.fromkeys(("package", "mlx", "mlx_lm", "python", "prefix", "digest"), "1"),
        "settings": {"memory": None},
        "environment": {"TZ": "0f"},
    }
    told = difference(mine, {**theirs, "protocol": protocol})
    assert told.isprintable()
    assert len(told) < 600
    assert told or not theirs


def test_the_salt_is_its_owners_alone_and_made_once(place):
    salts = set()
    start = threading.Barrier(8)

    def read():
        start.wait()
        salts.add(hellos._salt(place.salt))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(salts) == 1
    assert len(salts.pop()) == 32
    assert stat.S_IMODE(place.salt.stat().st_mode) == 0o600
    assert list(place.folder.iterdir()) == [place.salt]


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33])
def test_a_damaged_salt_is_told(place, content):
    place.salt.write_bytes(content)
    with pytest.raises(HostUnavailable, match=r"salt is damaged; remove it$"):
        hello(place)


def test_a_salt_that_can_not_be_read_or_made_is_told(place):
    os.mkfifo(place.salt)
    with watched(), pytest.raises(HostUnavailable, match=r"salt is damaged; remove it$"):
        hello(place)
    place.salt.unlink()
    shutil.rmtree(place.folder)
    with pytest.raises(HostUnavailable, match=r"salt can't be read or made \(No such file"):
        hello(place)
