"""Commands that ask a real host: what it holds in memory is seen and pinned too."""

import signal
import threading

import hosts
import pytest
from hosted_home import ASK, LONG
from test_startup import imported, imported_by, packages

HEAVY = {"mlx", "mlx_lm", "transformers", "huggingface_hub", "tokenizers"}


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
    assert told["pid"] == hosted.host.pid == hosted.memory()["pid"]
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


def test_commands_that_ask_the_host_import_no_mlx(hosted, models):
    hosted.asked(models[0])
    hosted.flush()
    span = hosted.told("tree")[0]["id"]
    asked = ["ps", "stats", "tree", f"pin {span}", "clear --yes", "stop"]
    found = imported_by(hosted.home, [["mlx-cached", *one.split()] for one in asked])
    assert packages(found).isdisjoint(HEAVY)
    assert hosted.host.ended() == 0


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


def test_of_a_host_that_is_stopped_all_commands_say_so(hosted, models, impatient):
    hosted.asked(models[0])
    pid = hosted.host.pid
    hosted.host.send_signal(signal.SIGSTOP)
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
    hosted.host.send_signal(signal.SIGCONT)
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
