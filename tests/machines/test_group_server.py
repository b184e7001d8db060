"""The host of a model over several machines, as long as it stays and as soon as it leaves."""

import asyncio
import math

import pytest
from hostfiles import local

from llm_mlx_promptcache.engine import pool
from llm_mlx_promptcache.engine.group import Backend
from llm_mlx_promptcache.engine.ranks import EXIT_STATUS
from llm_mlx_promptcache.host.life import Signs, Stage
from llm_mlx_promptcache.host.place import host_place
from llm_mlx_promptcache.machines import group_server
from llm_mlx_promptcache.machines.group_server import GroupServer
from llm_mlx_promptcache.machines.hostfile import hostfile_of
from llm_mlx_promptcache.machines.lead import Lead
from llm_mlx_promptcache.machines.orders import GroupPlan, LeadOrder


@pytest.fixture
def server_of(tmp_path, monkeypatch):
    """`server_of(keep)`: one that is not served, whose ranks were never started."""
    monkeypatch.setenv("LLM_MLX_CACHED_HOME", str(tmp_path))
    plan = GroupPlan("owner/model", hostfile_of(local()), "tensor", Backend.RING)

    def make(keep):
        place = host_place("tiny")
        place.socket.touch()
        order = LeadOrder("tiny", plan, "python", 32323, "127.0.0.1", keep)
        return GroupServer(place, {}, order, lambda lead, tell: None)

    yield make
    pool.close_engines()


def fails(*_, **__):
    raise RuntimeError("nothing works")


def test_law_18_the_process_ends_whatever_fails_while_its_end_is_told(server_of, monkeypatch):
    """Whoever asks would wait for ever."""
    left = []
    monkeypatch.setattr(group_server.os, "_exit", left.append)
    server = server_of(None)
    monkeypatch.setattr(server, "_end", fails)
    with pytest.raises(RuntimeError, match="nothing works"):
        server._ranks_ended("rank 1 is gone")
    assert left == [EXIT_STATUS]


def test_law_18_an_end_is_told_whatever_fails_in_finding_its_cause(monkeypatch):
    plan, told = GroupPlan("owner/model", hostfile_of(local()), "tensor", Backend.RING), []
    lead = Lead(LeadOrder("tiny", plan, "python", 32323, "127.0.0.1", None), told.append)
    monkeypatch.setattr(lead, "_last_words", fails)
    with pytest.raises(RuntimeError, match="nothing works"):
        lead._has_ended("rank 1 is gone")
    assert told == ["rank 1 is gone"]


class Client:
    """A connection that has nothing to say."""

    process, model, engine = 1, "", None


async def asked(server):
    """Somebody asks, and leaves."""
    client = Client()
    with server.open_for(client), server.asked_by(client, 0.0):
        pass


@pytest.mark.parametrize(("keep", "stays"), [(None, math.inf), (60.0, 60.0)])
def test_it_stays_as_it_was_told_once_it_was_asked_and_briefly_where_nobody_does(
    server_of, keep, stays
):
    """A `serve` that is ended before it asks leaves a process that nobody knows of."""

    async def look():
        server = server_of(keep)
        life, now = server._life, server.clock()
        assert life.look(now + 14, Signs()) is Stage.SERVING
        await asked(server)
        later = now + min(stays, 1e6)
        assert life.look(later - 1, Signs()) is Stage.SERVING
        if stays < math.inf:
            assert life.look(later + 1, Signs()) is Stage.LEAVING
        assert server_of(keep)._life.look(now + 16, Signs()) is Stage.LEAVING

    asyncio.run(look())
