"""The name of a served model: one group has it, and who is refused or gives up changes nothing."""

import os
import signal
import subprocess
from types import SimpleNamespace

import click
import pytest
from hostfiles import local, written
from served_homes import LONG

from llm_mlx_promptcache.commands import serve
from llm_mlx_promptcache.config import HOME_VARIABLE, ServedOver, data_folder, load_settings
from llm_mlx_promptcache.engine.group import Backend
from llm_mlx_promptcache.host import start
from llm_mlx_promptcache.host.place import HostUnavailable, host_place
from llm_mlx_promptcache.machines.hostfile import hostfile_of
from llm_mlx_promptcache.machines.orders import GroupPlan, LeadOrder

OVER = ServedOver(model="/m", hosts="/hosts.json", split="tensor", backend="ring")


@pytest.mark.slow
def test_of_two_that_serve_a_name_at_once_one_does_and_one_is_told(home):
    """Each has hosts of its own; then rank 0 is killed, and the name is served over the others."""
    before, sockets = home.processes(), home.sockets()
    hosts = [str(written(home.folder / f"hosts-{n}.json", local())) for n in range(2)]
    given = [("mlx-cached", "serve", home.model, "--name", "both", "--hosts", one) for one in hosts]
    typed = [home.begin(*one, stderr=subprocess.PIPE) for one in given]
    errors = [one.communicate(timeout=LONG)[1].decode() for one in typed]
    assert sorted(one.returncode for one in typed) == [0, 1]
    won, lost = sorted(range(2), key=lambda n: typed[n].returncode)
    pid = home.group("both")["pid"]
    assert errors[lost] == (
        f"Error: mlx-cached/both is served already (process {pid}); llm mlx-cached stop both ends"
        " it\n"
    )
    assert home.served_over("both") == hosts[won]
    assert len(home.processes()) == len(before) + 2
    os.kill(pid, signal.SIGKILL)
    home.serve("both", hosts=hosts[lost])  # at once
    assert home.served_over("both") == hosts[lost]
    assert home.group("both")["pid"] != pid
    home.ours("stop", "both")
    home.wait_for(before)
    assert home.sockets() == sockets


@pytest.mark.slow
@pytest.mark.parametrize("other", [None, 7])
def test_a_serve_that_is_given_up_leaves_no_name_but_one_that_others_have_taken(
    home, monkeypatch, other
):
    """By then another process may serve that name."""

    def ctrl_c(*_):
        if other is not None:
            monkeypatch.setattr(start, "check_absent", there)
        raise KeyboardInterrupt

    def there(*_):
        channel = SimpleNamespace(welcome={"pid": other}, close=lambda: None)
        raise start.HostPresent(channel)

    before = home.processes()
    monkeypatch.setattr(serve, "_wait", ctrl_c)
    home.serve("given-up", hosts=written(home.folder / "local.json", local()), status=1)
    home.wait_for(before)
    models = [one["model"] for one in home.told("models")["models"]]
    assert ("mlx-cached/given-up" in models) == (other is not None)


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A group as `serve` has started it, whose processes are nobody's."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    serve._register("big", OVER)
    child = SimpleNamespace(pid=7, terminate=lambda: None)
    return serve._StartedGroup(
        host_place("big"), SimpleNamespace(close=lambda: None), child, "big", None
    )


def damage():
    (data_folder() / "settings.json").write_text("{")


def test_a_name_that_can_not_be_taken_back_is_told_and_hides_no_reason(begun, monkeypatch, capsys):
    def silent(*_):
        raise start.HostSilent(7)

    begun.place.start_lock.mkdir()
    begun.take_back()
    begun.place.start_lock.rmdir()
    monkeypatch.setattr(start, "check_absent", silent)
    begun.take_back()
    assert load_settings().model("big").served == OVER
    monkeypatch.setattr(start, "check_absent", lambda *_: None)
    damage()
    begun.take_back()
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3
    assert all(line.startswith("mlx-cached/big stays a name (") for line in told)
    assert all(line.endswith("); llm mlx-cached remove big forgets it") for line in told)
    assert ["start.lock" in line for line in told] == [True, False, False]
    assert ["(process 7) does not answer" in line for line in told] == [False, True, False]
    assert ["settings.json" in line for line in told] == [False, False, True]


def test_why_a_group_does_not_start_is_told_where_its_name_stays(begun, monkeypatch, capsys):
    def fails(*_):
        damage()
        raise HostUnavailable("no memory is left")

    monkeypatch.setattr(start, "start_new", fails)
    plan = GroupPlan("/m", hostfile_of(local()), "tensor", Backend.RING)
    with pytest.raises(click.ClickException, match=r"^no memory is left$"):
        serve._begun("other", OVER, LeadOrder("other", plan, "python", 32323, "127.0.0.1"))
    assert capsys.readouterr().err.startswith("mlx-cached/other stays a name (the settings in ")
