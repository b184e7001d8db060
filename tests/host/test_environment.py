"""The part of its starter's environment that a host is given, and what is withheld."""

import os
from pathlib import Path

from llm_mlx_promptcache.host import environment

SECRET = "hf_thisIsMyAccessToken"


def test_a_host_is_given_what_it_needs_and_no_secret_but_the_hubs():
    given = {
        "PATH": "/bin",
        "HOME": "/home/me",
        "LC_ALL": "C",
        "XDG_CACHE_HOME": "/c",
        "LLM_MLX_CACHED_HOME": "/h",
        "LLM_MLX_CACHED_KEEP": "1h",
        "HF_TOKEN": SECRET,
        "https_proxy": "http://p",
        "LD_PRELOAD": "libopenblas.so /lib/b.so",
        "COVERAGE_PROCESS_START": "x",
    }
    withheld = {
        "OPENAI_API_KEY": SECRET,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "LLM_USER_PATH": "/l",
        "SSH_AUTH_SOCK": "/s",
        "PYTHONWARNINGS": "error",
        "PYTHONSTARTUP": "/p",
        "HFX": SECRET,
        "_": "x",
    }
    assert environment.of_host(given | withheld) == given


def test_a_host_finds_what_its_starter_named_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = {
        "LLM_MLX_CACHED_HOME": "home",
        "HF_HOME": "~/hub",
        "PYTHONPATH": f"src{os.pathsep}/abs{os.pathsep}",
        "LD_PRELOAD": "libopenblas.so",
        "XDG_DATA_HOME": "",
        "TZ": "Europe/Berlin",
    }
    assert environment.of_host(named) == {
        "LLM_MLX_CACHED_HOME": str(tmp_path / "home"),
        "HF_HOME": "~/hub",
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "src"), "/abs", str(tmp_path)]),
        "LD_PRELOAD": "libopenblas.so",
        "XDG_DATA_HOME": "",
        "TZ": "Europe/Berlin",
    }
    once = environment.of_host(named)
    monkeypatch.chdir(Path("/"))
    assert environment.of_host(once) == once
