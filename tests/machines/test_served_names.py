"""The name of a served model: one group has it, and who is refused or gives up changes nothing."""

import os
import signal
import subprocess
from types import SimpleNamespace

import pytest
from hostfiles import local, written
from served_homes import LONG

from llm_mlx_promptcache.commands import serve
from llm_mlx_promptcache.host import start


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
