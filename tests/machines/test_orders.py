"""Orders to processes of a group, their words, and the variables that MLX is given."""

import json
import stat
from pathlib import Path

import pytest
from hostfiles import local, macs

from llm_mlx_promptcache.engine.group import Backend
from llm_mlx_promptcache.machines.hostfile import HostfileError, hostfile_of
from llm_mlx_promptcache.machines.mlx_variables import mlx_variables, ports_of
from llm_mlx_promptcache.machines.orders import (
    MARK,
    GroupPlan,
    LeadOrder,
    OrderError,
    RankOrder,
    heard,
    lead_order,
    order_to_line,
    rank_order,
    said,
)

PLAN = GroupPlan("owner/model", hostfile_of(local(3)), "tensor", Backend.RING)
LEAD = LeadOrder("name", PLAN, "/usr/bin/python3", 32323, "127.0.0.1", 300.0)
RANK = RankOrder(PLAN, 1, ((1,), (2,), (3,)), ("127.0.0.1", 4000), "ab" * 32)


def test_orders_are_read_back_from_one_line():
    for order, read in ((LEAD, lead_order), (LEAD._replace(keep=None), lead_order)):
        assert read(order_to_line(order)) == order
    line = order_to_line(RANK)
    assert line.count(b"\n") == 1
    assert rank_order(line) == RANK


def changed(order, **values):
    return json.dumps({**json.loads(order_to_line(order)), **values}).encode()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"[]",
        b"{" * 10_000,
        b"\xff",
        order_to_line(LEAD),
        changed(RANK, rank=0),
        changed(RANK, rank=3),
        changed(RANK, rank="1"),
        changed(RANK, ports=[[1], [2]]),
        changed(RANK, ports=[[1], [2], [1 << 16]]),
        changed(RANK, ports=[[1], [2], ["3"]]),
        changed(RANK, address=["127.0.0.1"]),
        changed(RANK, plan={}),
        changed(RANK, plan={**json.loads(order_to_line(RANK))["plan"], "split": "rows"}),
        changed(RANK, plan={**json.loads(order_to_line(RANK))["plan"], "backend": "mpi"}),
        changed(RANK, plan={**json.loads(order_to_line(RANK))["plan"], "hosts": []}),
    ],
)
def test_what_is_no_order_of_a_rank_is_refused(line):
    with pytest.raises(OrderError):
        rank_order(line)


def test_what_is_no_order_of_rank_0_is_refused():
    for line in (b"", order_to_line(RANK), changed(LEAD, keep="5m"), changed(LEAD, plan=None)):
        with pytest.raises(OrderError):
            lead_order(line)


def test_a_rank_is_heard_among_what_login_shells_say():
    assert heard(said({"a": [1, "\u00e4"]})) == {"a": [1, "\u00e4"]}
    for line in (b"Welcome to mac2!\n", b"\xff", f"{MARK}{{".encode(), f"{MARK}[]".encode()):
        assert heard(line) is None


def test_ranks_of_this_machine_get_ports_that_are_free_and_others_the_next():
    hosts = [*local(2), {"ssh": "mac2", "ips": ["10.0.0.1", "10.0.1.1"]}, {"ssh": "mac3"}]
    ports = ports_of(PLAN._replace(hosts=hostfile_of(hosts)), 40000)
    assert ports[2:] == ((40002, 40003), (40004,))
    assert len({ports[0], ports[1]}) == 2


def test_an_address_of_another_machine_is_none_for_a_rank_of_this_one():
    hosts = [local(1)[0], {"ssh": "127.0.0.1", "ips": ["203.0.113.7"]}]
    with pytest.raises(HostfileError, match=r"has 203\.0\.113\.7 for a rank of this machine"):
        ports_of(PLAN._replace(hosts=hostfile_of(hosts)))


def test_a_ring_is_told_by_a_file_of_the_owner_that_goes_with_its_use():
    environ = {}
    hosts = hostfile_of({"hosts": local(3), "envs": ["MLX_A=1"]})
    plan = PLAN._replace(hosts=hosts)
    with mlx_variables(plan, 1, ((1,), (2,), (3,)), environ):
        path = environ["MLX_HOSTFILE"]
        told = [["127.0.0.1:1"], ["127.0.0.1:2"], ["127.0.0.1:3"]]
        assert json.loads(Path(path).read_text()) == told
        modes = [stat.S_IMODE(one.stat().st_mode) for one in (Path(path), Path(path).parent)]
        assert modes == [0o600, 0o700]
    assert not Path(path).exists()
    assert environ == {"MLX_RANK": "1", "MLX_A": "1", "MLX_HOSTFILE": path}


@pytest.mark.parametrize("backend", [Backend.JACCL, Backend.JACCL_RING])
def test_jaccl_is_told_the_devices_and_where_rank_0_is(backend):
    environ = {}
    plan = PLAN._replace(hosts=hostfile_of(macs()), backend=backend)
    with mlx_variables(plan, 2, ((1,), (2,), (3,)), environ):
        told = json.loads(Path(environ["MLX_IBV_DEVICES"]).read_text())
    assert told == [host["rdma"] for host in macs()["hosts"]]
    assert environ["MLX_JACCL_COORDINATOR"] == "10.0.0.1:1"
    assert environ.get("MLX_JACCL_RING") == ("1" if backend is Backend.JACCL_RING else None)
    assert environ["MLX_METAL_FAST_SYNCH"] == "1"
