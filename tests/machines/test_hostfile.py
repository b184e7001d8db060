"""Hostfiles: those that mlx writes are taken as they are, whatever else is refused in words."""

import json
import os
import re

import pytest
from hostfiles import local, macs, written
from hypothesis import given
from hypothesis import strategies as st

from llm_mlx_promptcache.engine.group import Backend
from llm_mlx_promptcache.machines.hostfile import (
    HostfileError,
    Machine,
    fitting_backend,
    hostfile_of,
    hostfile_to_json,
    read_hostfile,
)


def test_both_forms_of_a_file_are_read(tmp_path):
    found = read_hostfile(written(tmp_path / "hosts.json", local(3)))
    assert found.machines == (Machine("127.0.0.1", ("127.0.0.1",)),) * 3
    assert (found.backend, found.envs) == (None, ())
    found = read_hostfile(written(tmp_path / "hosts.json", macs()))
    assert found.machines[1] == Machine(
        "mac1.local", ("10.0.0.2",), (("rdma_en0",), (), ("rdma_en2",))
    )
    assert (found.backend, found.envs) == (Backend.JACCL, (("MLX_METAL_FAST_SYNCH", "1"),))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it closes no file
def test_mlx_reads_what_we_write_and_we_read_what_mlx_writes(tmp_path):
    """Against mlx's own class, which nobody promises to keep."""
    from mlx._distributed_utils.common import Host, Hostfile

    theirs = Hostfile(
        [
            Host(0, "mac0", ["10.0.0.1", "10.0.1.1"], [None, ["rdma_en2", "rdma_en3"]]),
            Host(1, "me@mac1", ["10.0.0.2", "10.0.1.2"], [["rdma_en2", "rdma_en3"], None]),
        ],
        "jaccl",
        ["MLX_METAL_FAST_SYNCH=1"],
    )
    ours = hostfile_of(theirs.to_json())
    assert ours.machines[0].rdma == ((), ("rdma_en2", "rdma_en3"))
    again = Hostfile.from_file(written(tmp_path / "hosts.json", hostfile_to_json(ours)))
    assert again == theirs


def test_what_is_told_as_json_is_read_back():
    found = hostfile_of(macs(4))
    assert hostfile_of(json.loads(json.dumps(hostfile_to_json(found)))) == found


def changed(**values):
    """Two hosts, whose second has other values."""
    one, other = local()
    return [one, {**other, **values}]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("{", "holds no JSON; mlx.distributed_config writes one"),
        ("[" * 100_000, "holds no JSON"),
        ("\udcff", "holds no JSON"),
        ("1" * 5000, "holds no JSON"),
        (None, "its hosts are null"),
        ({}, "its hosts are null"),
        ({"hosts": {}}, "its hosts are {}"),
        ([], "it names 0 hosts; give 2 to 64"),
        (local(1), "it names 1 hosts; give 2 to 64"),
        (local(65), "it names 65 hosts; give 2 to 64"),
        (["mac1", "mac2"], 'hosts[0] is "mac1"; give an object with ssh and ips'),
        (changed(ssh=None), "hosts[1].ssh is null; give a name that ssh knows"),
        (changed(ssh=""), 'hosts[1].ssh is ""'),
        (changed(ssh="-oProxyCommand=touch x"), 'hosts[1].ssh is "-oProxyCommand=touch x"'),
        (changed(ssh="mac; rm -rf ~"), "hosts[1].ssh is"),
        (changed(ssh="mac\nHost *"), "hosts[1].ssh is"),
        (changed(ssh="m" * 256), f'hosts[1].ssh is "{"m" * 79}...; give'),
        (changed(ssh="m\u00e4c"), "hosts[1].ssh is"),
        (changed(ips="10.0.0.1"), 'hosts[1].ips is "10.0.0.1"; give a list of at most 16'),
        (changed(ips=["10.0.0.1"] * 17), "give a list of at most 16"),
        (changed(ips=["mac2"]), 'hosts[1].ips[0] is "mac2"; give an IPv4 address'),
        (changed(ips=["10.0.0.1:80"]), 'hosts[1].ips[0] is "10.0.0.1:80"'),
        (changed(ips=["::1"]), 'hosts[1].ips[0] is "::1"; give an IPv4 address'),
        (changed(ips=[7]), "hosts[1].ips[0] is 7"),
        (changed(rdma=["en0"]), "give a device or null for each of the 2 hosts"),
        (changed(rdma="en0"), "hosts[1].rdma is"),
        (changed(rdma=["../en0", None]), 'hosts[1].rdma[0] is "../en0"; give a device such as'),
        (changed(rdma=[["en0", 1], None]), "hosts[1].rdma[0] is"),
        (changed(rdma=[{}, None]), "hosts[1].rdma[0] is {}"),
        ({"hosts": local(), "backend": "mpi"}, 'its backend is "mpi"; give one of ring, jaccl'),
        ({"hosts": local(), "backend": [1]}, "its backend is [1]"),
        ({"hosts": local(), "envs": "A=1"}, 'its envs are "A=1"'),
        ({"hosts": local(), "envs": ["LD_PRELOAD=/tmp/x.so"]}, 'it sets "LD_PRELOAD=/tmp/x.so"'),
        ({"hosts": local(), "envs": ["MLX_A=1\n"]}, "it sets"),
        ({"hosts": local(), "envs": [5]}, "it sets 5"),
        ({"hosts": local(), "envs": ["MLX_RANK=0"]}, "it sets MLX_RANK, which is each rank's own"),
        ({"hosts": local(), "envs": ["MLX_A=1"] * 65}, "give a list of at most 64"),
    ],
)
def test_what_is_no_hostfile_is_refused_with_the_value(tmp_path, data, words):
    path = tmp_path / "hosts.json"
    if data == "\udcff":
        path.write_bytes(b"\xff\xfe[")
    else:
        written(path, data)
    with pytest.raises(HostfileError, match=re.escape(words)) as error:
        read_hostfile(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 500
    assert "\n" not in str(error.value)


def test_files_that_are_none_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b" " * ((1 << 20) + 1))
    for name, words in (
        ("gone", "can't be read (No such file or directory)"),
        ("pipe", "pipe is no regular file"),
        ("large", "large has 1048577 bytes, more than 1048576"),
        (".", "can't be read|is no regular file"),
    ):
        with pytest.raises(HostfileError, match=words if "|" in words else re.escape(words)):
            read_hostfile(tmp_path / name)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["hosts", "ssh", "ips", "rdma", "backend", "envs"]), inner
        )
    ),
    max_leaves=20,
)


@given(_JSON)
def test_whatever_json_says_it_is_a_hostfile_or_an_error(data):
    try:
        found = hostfile_of(data)
    except HostfileError:
        return
    assert hostfile_of(hostfile_to_json(found)) == found


def test_the_backend_is_the_one_asked_for_else_the_files_else_ring():
    files = hostfile_of(macs())
    assert fitting_backend(hostfile_of(local()), None) is Backend.RING
    assert fitting_backend(files, None) is Backend.JACCL
    assert fitting_backend(files, Backend.RING) is Backend.RING
    assert [backend.of_mlx for backend in Backend] == ["ring", "jaccl", "jaccl"]


def test_a_ring_of_devices_needs_those_of_its_neighbours_alone():
    hosts = macs(4)["hosts"]
    for one in range(4):
        hosts[one]["rdma"][(one + 2) % 4] = None
    ring = hostfile_of({"backend": "jaccl-ring", "hosts": hosts})
    assert fitting_backend(ring, None) is Backend.JACCL_RING
    assert fitting_backend(ring, Backend.JACCL) is Backend.JACCL_RING
    with pytest.raises(HostfileError, match=r"no RDMA device from 'mac0.local' to 'mac2.local'"):
        fitting_backend(hostfile_of({"hosts": hosts}), Backend.JACCL)


def test_a_backend_that_the_file_has_nothing_for_is_refused():
    without = [{"ssh": "mac0", "ips": []}, {"ssh": "mac1", "ips": ["10.0.0.2"]}]
    with pytest.raises(HostfileError, match="'mac0' has no addresses"):
        fitting_backend(hostfile_of(without), None)
    with pytest.raises(HostfileError, match="'mac0' has no address "):
        fitting_backend(hostfile_of(without), Backend.JACCL)
    with pytest.raises(HostfileError, match=r"lists no RDMA device from '127\.0\.0\.1'"):
        fitting_backend(hostfile_of(local()), Backend.JACCL)
