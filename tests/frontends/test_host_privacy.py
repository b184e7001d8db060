"""Promise 8 in the host: what is cleared, or was not to be kept, is in its memory no more."""

import signal
import time

import hosts
import pytest
from hosted_home import ASK, LONG

from llm_mlx_promptcache.engine import wire
from llm_mlx_promptcache.engine.events import TextDelta


@pytest.mark.parametrize("which", ["all", "model", "registered", "namespace", "old"])
def test_p8_clear_clears_the_hosts_memory_too(hosted, models, which):
    hosted.ours("add", models[0], "-a", "t")
    hosted.asked(models[0])
    hosted.asked(models[1])
    assert hosted.asked(models[0], LONG + " and").usage.cached > 0
    (namespace,) = {s["namespace"] for s in hosted.told("tree", "--model", models[0])}
    arguments = {
        "all": [],
        "model": ["--model", models[0]],
        "registered": ["--model", "t"],
        "namespace": ["--model", namespace[:8]],
        "old": ["--older-than", "0m"],
    }[which]
    before, disk = hosted.memory()["bytes"], hosted.told("stats")["bytes"]
    freed = hosted.told("clear", *arguments)
    assert min(freed.values()) > 0
    left = hosted.memory()["bytes"]
    assert freed["freed_memory"] == before - left
    assert freed["freed"] == disk - hosted.told("stats")["bytes"]
    assert {m["model"] for m in hosted.told("stats")["models"]} == (
        {models[1]} if which in ("model", "registered", "namespace") else set()
    )
    assert hosted.memory()["waiting"] == 0
    assert (hosted.asked(models[1]).usage.cached > 0) == (left > 0)
    assert hosted.asked(models[0]).usage.cached == 0
    assert hosted.ours("check")[0] == "all is well"


def test_p8_old_is_what_was_not_used(hosted, models):
    hosted.asked(models[0])
    assert hosted.told("clear", "--older-than", "1h") == {"freed": 0, "freed_memory": 0}
    assert hosted.asked(models[0]).usage.cached > 0


def test_p8_what_is_answered_meanwhile_is_not_kept(hosted, models):
    """The beginning of the answer is there; clear runs; then it goes on to its end."""
    channel = hosted.host.welcomed()
    channel.send(hosts.generate(models[0], max_tokens=1500), hosts.LONG)
    frames = hosts.frames_of(channel)
    assert any(
        isinstance(wire.from_json(frame["event"]), TextDelta)
        for frame in frames
        if "event" in frame
    )
    hosted.told("clear")
    ends = [frame for frame in frames if "event" not in frame and "beat" not in frame]
    channel.close()
    assert ends == [{"end": True}]
    assert hosted.memory()["bytes"] == hosted.disk() == 0
    hosted.ours("stop")
    assert hosted.host.ended() == 0
    assert hosted.disk() == 0


def test_p8_a_host_that_is_ending_is_waited_for_and_what_it_wrote_is_cleared(hosted, models):
    """It writes what it has at its end: a clear before that would leave it."""
    hosted.asked(models[0])
    channel = hosted.host.welcomed()
    channel.send(hosts.generate(models[0], max_tokens=200), hosts.LONG)
    frames = hosts.frames_of(channel)
    assert "event" in next(frames)
    hosted.host.send_signal(signal.SIGTERM)
    until = time.monotonic() + hosts.LONG
    while (stage := hosted.told("ps").get("stage")) == "serving":
        assert time.monotonic() < until
    assert stage in (None, "finishing what was asked")
    assert hosted.ours("clear")[0].startswith("freed ")
    assert hosted.host.ended() == 0
    assert list(frames)[-1] == {"end": True}
    channel.close()
    assert hosted.disk() == 0


def test_p8_logs_off_holds_in_the_host(hosted, models):
    """Memory may have it, the disk never: not at the end of the host either."""
    hosted.asked(models[0], on_disk=False)
    tree = hosted.told("tree")
    assert tree
    assert all(not span["on_disk"] and span["in_memory"] for span in tree)
    assert "in memory alone" in hosted.ours("tree")[0]
    assert hosted.disk() == 0 < hosted.memory()["bytes"]
    assert hosted.asked(models[0], on_disk=False).usage.cached > 0
    hosted.ours("stop")
    assert hosted.host.ended() == 0
    assert hosted.disk() == 0


def test_p8_cache_false_holds_in_the_host(hosted, models):
    hosted.asked(models[0], use_cache=False)
    assert hosted.memory()["bytes"] == hosted.disk() == 0
    assert hosted.asked(models[0], use_cache=False).usage.cached == 0
    assert hosted.told("tree") == []


def test_p8_what_only_memory_has_is_cleared_by_its_models_name(hosted, models):
    hosted.asked(models[0], on_disk=False)
    freed = hosted.told("clear", "--model", models[0])
    assert freed["freed"] == 0 < freed["freed_memory"]
    assert hosted.memory()["bytes"] == 0


def test_p8_what_llm_was_told_not_to_keep_is_not_kept_in_the_host(user):
    user.home.llm("logs", "off")
    user.home.llm(*ASK, "Hello")
    assert user.disk() == 0 < user.memory()["bytes"]
    user.told("clear")
    user.home.llm(*ASK, "Hello", "-o", "cache", "false")
    assert user.disk() == user.memory()["bytes"] == 0
    user.home.llm("logs", "on")
    user.home.llm(*ASK, "Hello")
    assert user.home.last()["details"]["cached"] == 0
    assert user.disk() > 0
