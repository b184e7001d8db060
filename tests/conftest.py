"""Models for the tests of all rooms: tiny random ones, and the real default one."""

import functools
import gc
import os
import secrets
import shutil
import signal
from contextlib import ExitStack
from pathlib import Path

import durations
import forks
import left_hosts
import pytest
from hypothesis import settings

# No test asks the hub of the world; those that ask one have one of their own. Read at its import.
os.environ["HF_HUB_OFFLINE"] = "1"

# A busy machine is no fault; what failed can be had again.
settings.register_profile("ours", deadline=None, print_blob=True)
settings.load_profile("ours")


def pytest_configure(config):
    # A shell starts what it does not wait for with Ctrl-C ignored, and so would all our children.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if path := os.environ.get(durations.RECORD):
        config.pluginmanager.register(durations.Recorder(Path(path)))


def pytest_collection_modifyitems(config, items):
    durations.mark_slow(items)
    if not os.environ.get(durations.RECORD):  # all cases are timed
        durations.leave_to_soak(items)
    if hasattr(config, "workerinput"):  # files go to whoever is free: none of the long ones last
        durations.costly_first(items)
    if not os.environ.get("SOAK"):
        for item in items:
            if item.get_closest_marker("soak"):
                item.add_marker(pytest.mark.skip(reason="long; make soak runs it"))


def pytest_collection_finish():
    # What was imported and collected stays to the end. Looking through it again and again for
    # garbage took a fifth of the time.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def no_host_is_left(tmp_path_factory):
    """No test starts a host unless it asks to, and none is left behind."""
    token = secrets.token_hex(8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_MLX_CACHED_KEEP", "0")
        patch.setenv("LLM_MLX_CACHED_TESTS", token)  # a host is given it, and its children are
        forks.of_session = forks.Forks(tmp_path_factory.mktemp("forks"), dict(os.environ))
        yield
        forks.of_session.close()
        left = left_hosts.of_session(token, tmp_path_factory.getbasetemp())
    assert not left, f"hosts that tests left, ended now: {left}"


@pytest.fixture(scope="session", autouse=True)
def counts_follow_from_requests():
    """No engine of this process's pool works ahead, which begins by a clock, unless a test asks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_MLX_CACHED_AHEAD", "0")
        yield


if os.environ.get("DRAFTS") == "off":

    @pytest.fixture(autouse=True)
    def undrafted(request, monkeypatch):
        """Engines of this process draft nothing, but in tests whose requests say it themselves."""
        from llm_mlx_promptcache.engine.drafting import ModelDrafting

        if not request.node.get_closest_marker("drafts"):
            monkeypatch.setattr(ModelDrafting, "drafter", lambda *_: None)


@pytest.fixture(scope="session")
def soak_share():
    """The share of its rounds that a long test does: all, or SOAK_SHARE if time is short."""
    return float(os.environ.get("SOAK_SHARE", "1"))


@pytest.fixture(scope="module")
def shared_views():
    """Models of this process read a tokenizer once, and make a grammar's view of it once."""
    import shared_tokenizers

    with pytest.MonkeyPatch.context() as patch:
        shared_tokenizers.share_views(patch)
        yield


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """`tiny_llama(layers=2, vocab=None, seed=0, context=2048)` -> a new folder with that model."""
    import tiny_models

    @functools.cache
    def made(**sizes):
        return tiny_models.write_tiny_llama(tmp_path_factory.mktemp("made-llama"), **sizes)

    def write(**sizes):
        new = tmp_path_factory.mktemp("tiny-llama")
        return shutil.copytree(made(**sizes), new, copy_function=shutil.copy, dirs_exist_ok=True)

    return write


@pytest.fixture
def play():
    """`play(size, **more)`: the test goes on on a Mac of so many GB (`played_macs.PlayedMac`)."""
    import played_macs

    with ExitStack() as played:
        yield lambda size, **more: played.enter_context(
            played_macs.playing(played_macs.PlayedMac(size, **more))
        )


@pytest.fixture(scope="session")
def real_model_folder():
    """The default model in float32, fetched once into LLM_MLX_TEST_DATA or the user's data."""
    from llm_mlx_promptcache.config import data_folder
    from llm_mlx_promptcache.models.default_model import ensure_default_model

    kept = os.environ.get("LLM_MLX_TEST_DATA")
    return ensure_default_model(Path(kept) if kept else data_folder(), variant="f32")
