"""Commands that ask a real host: what it holds in memory is seen, pinned and cleared too."""

import functools
import signal
import threading
import time

import hosts
import pytest
from test_startup import imported, packages

from llm_mlx_promptcache.cache.disk.listing import path_id
from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.commands import host as host_commands
from llm_mlx_promptcache.config import HOME_VARIABLE, KEEP_VARIABLE
from llm_mlx_promptcache.engine import wire
from llm_mlx_promptcache.engine.events import Finished, TextDelta
from llm_mlx_promptcache.host import asking, start
from llm_mlx_promptcache.host.place import host_place

HEAVY = {"mlx", "mlx_lm", "transformers", "huggingface_hub", "tokenizers"}
LONG = "Hello capital of the user and the answer of the system"


@pytest.fixture(scope="session")
def models(tiny_llama):
    """Two models of other weights."""
    return str(tiny_llama()), str(tiny_llama(seed=1))


class Hosted:
    """A home with a host in a process of its own."""

    def __init__(self, home, place):
        self.home, self.host = home, hosts.Host(place)
        self.told, self.ours = home.told, home.ours

    def asked(self, model, text=LONG, **asked):
        """The end of an answer of the host."""
        frames = self.host.ask(hosts.generate(model, text, **asked))
        assert "end" in frames[-1], frames[-1]
        *_, last = hosts.events(frames)
        assert isinstance(last, Finished)
        return last

    def memory(self):
        return self.told("stats")["memory"]

    def disk(self):
        return self.told("stats")["spans"]

    def flush(self):
        """Have what waits to be written be on the disk."""
        *_, last = self.host.ask({"ask": "flush"})
        assert last == {"result": {}}

    def earlier_id(self, file_id):
        """The id that a stored span had while memory alone held it."""
        listing = DiskStore(self.told("path")["path"]).listing()
        (span,) = listing.named(file_id)
        return path_id(span.namespace, listing.path(span))

    def end(self):
        if self.host.process.poll() is None:
            self.host.process.send_signal(signal.SIGCONT)
            self.host.process.terminate()
            self.host.process.terminate()
        return self.host.ended()


@pytest.fixture
def hosted(bare_home, monkeypatch):
    """A home whose host answers; ended with the test."""
    monkeypatch.setenv(HOME_VARIABLE, bare_home.own()[HOME_VARIABLE])
    monkeypatch.setenv(KEEP_VARIABLE, "1h")
    made = Hosted(bare_home, host_place())
    made.host.connected().close()
    yield made
    made.end()


def test_ps_and_stop_without_a_host_say_so(bare_home):
    assert bare_home.told("ps") == {"pid": None, "memory": None, "models": [], "served": []}
    assert bare_home.told("stop") == {"pid": None, "ended": False, "served": []}
    assert bare_home.ours("ps")[0] == bare_home.ours("stop")[0] == "no host runs"
    assert bare_home.told("stats")["memory"] is None


def test_where_others_could_put_a_host_all_commands_say_so_in_a_line(hosted):
    hosted.host.place.folder.chmod(0o755)
    for command in ("ps", "stop", "clear"):
        (line,) = hosted.ours(command, status=1)[1].splitlines()
        assert f"{hosted.host.place.folder} is open to others (mode 755)" in line
    hosted.host.place.folder.chmod(0o700)
    assert hosted.told("stop")["ended"]


def test_ps_shows_what_the_host_holds_and_stop_ends_it(hosted, models):
    assert hosted.told("ps")["models"] == []
    hosted.asked(models[0])
    told = hosted.told("ps")
    (model,) = told["models"]
    assert (model["model"], model["loaded"]) == (models[0], True)
    assert model["weights"] > 0 < model["cache"] == hosted.memory()["bytes"]
    assert told["pid"] == hosted.host.process.pid == hosted.memory()["pid"]
    assert told["build"]["mlx"]
    assert told["until"] - told["idle_since"] == pytest.approx(3600, abs=2)
    assert told["busy"] == 0
    memory = told["memory"]
    assert memory["active"] > memory["counted"] == model["cache"]
    assert hosted.memory()["buffers"] > 0
    assert hosted.memory()["active"] > model["weights"]
    line, held, row = hosted.ours("ps")[0].splitlines()
    assert held.startswith("MLX holds ")
    assert "of freed buffers" in hosted.ours("stats")[0]
    assert line.startswith(f"process {told['pid']}, version ")
    assert "idle since" in line
    assert "stays until" in line
    assert row.split("\t")[0] == models[0]
    assert hosted.home.llm("mlx-cached", "stop")[0] == f"the host (process {told['pid']}) has ended"
    assert hosted.host.ended() == 0
    assert hosted.told("ps")["pid"] is None
    assert hosted.disk() > 0


@pytest.mark.parametrize("command", [["ps"], ["stats"], ["tree"], ["pin"], ["clear"], ["stop"]])
def test_commands_that_ask_the_host_import_no_mlx(hosted, models, command):
    hosted.asked(models[0])
    span = []
    if command == ["pin"]:
        hosted.flush()
        span = [hosted.told("tree")[0]["id"]]
    assert packages(imported(hosted.home, "mlx-cached", *command, *span)).isdisjoint(HEAVY)


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
    hosted.host.process.terminate()
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


def test_tree_tells_what_of_the_disk_is_in_memory(hosted, models):
    hosted.asked(models[0])
    hosted.asked(models[0], LONG + " and the", on_disk=False)
    tree = {span["id"]: span for span in hosted.told("tree")}
    assert {span["on_disk"] for span in tree.values()} == {True, False}
    for span in tree.values():
        assert 0 < span["in_memory"] <= span["end"] - span["start"]
        if span["parent"]:
            parent = tree[span["parent"]]
            assert parent["start"] <= span["start"] <= parent["end"]
    hosted.told("clear", "--older-than", "1h")
    hosted.ours("stop")
    assert hosted.host.ended() == 0
    left = hosted.told("tree")
    assert left
    assert {span["in_memory"] for span in left} == {0}
    assert {span["on_disk"] for span in left} == {True}


@pytest.mark.parametrize("where", ["disk", "written since", "memory"])
def test_pins_hold_in_memory_and_on_the_disk(hosted, models, where):
    """Spans kept off the disk are pinned in memory alone.

    A span is pinned by the id that memory alone showed though it was written meanwhile.
    """
    hosted.asked(models[0], on_disk=where != "memory")
    hosted.flush()
    spans = hosted.told("tree")
    assert {span["on_disk"] for span in spans} == {where != "memory"}
    last = max(spans, key=lambda span: span["end"])
    name = hosted.earlier_id(last["id"]) if where == "written since" else last["id"]
    assert (name != last["id"]) == (where == "written since")
    pinned = hosted.told("pin", name)
    assert (pinned["id"], pinned["tokens"]) == (last["id"], last["end"])
    (shown,) = [span for span in hosted.told("tree") if span["pinned"]]
    assert (shown["id"], shown["on_disk"]) == (pinned["id"], where != "memory")
    hosted.told("clear", "--older-than", "0m")
    assert hosted.memory()["bytes"] > 0
    assert (hosted.disk() > 0) == (where != "memory")
    assert hosted.asked(models[0], on_disk=False).usage.cached > 0
    assert hosted.told("unpin", pinned["id"][:8])["pinned"] is False
    hosted.told("clear", "--older-than", "0m")
    assert hosted.memory()["bytes"] == hosted.disk() == 0


def test_a_pin_of_nothing_is_one_line(hosted, models):
    hosted.asked(models[0])
    (line,) = hosted.ours("pin", "0" * 8, status=1)[1].splitlines()
    assert line.startswith("Error: no span has the id '00000000'")


@pytest.fixture
def impatient(monkeypatch):
    """Commands that wait a moment for what takes them seconds."""
    waits = start.Waits(hello=0.3)
    monkeypatch.setattr(asking, "find", functools.partial(start.find, waits=waits))
    monkeypatch.setattr(host_commands, "_WAIT_SECONDS", 0.3)


def test_of_a_host_that_is_stopped_all_commands_say_so(hosted, models, impatient):
    hosted.asked(models[0])
    pid = hosted.host.process.pid
    hosted.host.process.send_signal(signal.SIGSTOP)
    out, error = hosted.ours("stats")
    assert str(pid) in error
    assert error.endswith("what it has in memory is not shown")
    assert "in the memory of process" not in out
    hosted.ours("tree")
    assert str(pid) in hosted.ours("ps", status=1)[1]
    out, error = hosted.ours("clear", status=1)
    assert out.startswith("freed ")
    assert "what it has in memory is not cleared" in error
    error = hosted.ours("stop", status=1)[1]
    assert f"(process {pid})" in error
    assert "it is stopped" in error
    hosted.host.process.send_signal(signal.SIGCONT)
    assert hosted.host.ended() == 0  # it was asked to


def test_stop_waits_for_an_answer(hosted, models):
    """A request is answered to its end, and then the host is gone."""
    channel = hosted.host.welcomed()
    channel.send(hosts.generate(models[0], max_tokens=100), hosts.LONG)
    frames = hosts.frames_of(channel)
    assert "event" in next(frames)
    stopping = threading.Thread(target=hosted.ours, args=("stop",))
    stopping.start()
    rest = list(frames)
    channel.close()
    stopping.join(hosts.LONG)
    assert rest[-1] == {"end": True}
    assert hosted.host.ended() == 0


ASK = ("-m", "mlx-cached", "-s", LONG, "-o", "max_tokens", "4")


@pytest.fixture
def user(hosted, models):
    """A user of `llm` whose prompts the host answers."""
    hosted.ours("default", models[0])
    return hosted


def test_warm_has_the_host_compute_and_the_disk_written(user):
    out, _ = user.home.llm("mlx-cached", "warm", "-s", "-", "--pin", stdin=LONG)
    assert "; pinned: " in out
    (span,) = user.told("tree")
    assert (span["on_disk"], span["pinned"]) == (True, True)
    assert span["in_memory"] == span["end"]
    assert [m["loaded"] for m in user.told("ps")["models"]] == [True]
    again, _ = user.home.llm("mlx-cached", "warm", "-s", "-", stdin=LONG + " and")
    assert not again.startswith("0 tokens were cached")
    user.home.llm(*ASK, "Hello")
    assert user.home.last()["details"]["cached"] == span["end"]


def test_explain_tells_what_the_host_has_in_memory(user):
    user.home.llm(*ASK, "Hello")
    now = user.told("explain")["now"]
    assert now["in_memory"] == now["prompt"]
    assert f"the host has {now['prompt']} in memory" in user.ours("explain")[0]
    user.told("clear")
    now = user.told("explain")["now"]
    assert now["in_memory"] == now["stored"] == 0
    user.ours("stop")
    assert user.told("explain")["now"]["in_memory"] is None


@pytest.mark.parametrize("command", [["explain"], ["tree", "--text"]])
def test_c14_what_takes_a_tokenizer_is_asked_of_the_host(user, command):
    """And is what this process would say: the host's and its own are compared."""
    user.home.llm(*ASK, "Hello")
    user.flush()
    assert packages(imported(user.home, "mlx-cached", *command)).isdisjoint(HEAVY)
    asked = user.told(*command)
    user.ours("stop")
    assert user.host.ended() == 0
    found = user.told(*command)
    if command == ["explain"]:
        assert found["now"].pop("in_memory") is None
        assert asked["now"].pop("in_memory") == asked["now"]["prompt"]
        assert found == asked
    else:
        assert any(LONG in span["text"] for span in asked)
        assert [span["text"] for span in found] == [span["text"] for span in asked]


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


def host_lines(hosted, status=0):
    """The lines of `doctor` about the host, without a model, by what each is about."""
    told = hosted.told("doctor", "-m", "nobody/nothing", status=status)
    return {line["what"]: line for line in told["lines"] if line["part"] == "host"}


def test_doctor_asks_a_host_and_leaves_it_as_it_is(hosted, models):
    hosted.asked(models[0])
    before = hosted.told("ps")
    lines = host_lines(hosted)
    assert list(lines) == ["folder", "answers", "fits"]
    assert {line["health"] for line in lines.values()} == {"ok"}
    assert lines["answers"]["figures"]["models"] == 1
    after = hosted.told("ps")
    assert (after["pid"], after["models"]) == (before["pid"], before["models"])
    hosted.ours("settings", "--memory", "2GB")
    line = host_lines(hosted)["fits"]
    assert line["health"] == "worth knowing"
    assert "its settings are others (memory)" in line["found"]


def test_doctor_names_a_host_that_hangs(hosted, models, impatient):
    hosted.host.process.send_signal(signal.SIGSTOP)
    line = host_lines(hosted, status=1)["answers"]
    hosted.host.process.send_signal(signal.SIGCONT)
    assert line["health"] == "wrong"
    assert line["todo"] == f"kill {hosted.host.process.pid}"


def test_doctor_names_a_host_s_folder_that_is_open(hosted):
    hosted.host.place.folder.chmod(0o755)
    line = host_lines(hosted, status=1)["folder"]
    hosted.host.place.folder.chmod(0o700)
    assert "is open to others (mode 755)" in line["found"]
