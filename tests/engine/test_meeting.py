"""Meetings of ranks over TCP: who is let in, who is turned away, and what strangers get."""

import socket
import threading

import pytest
from grouped import SECRET, Ended, GroupEnded, each, end

from llm_mlx_promptcache.engine import rank_links
from llm_mlx_promptcache.engine.group import Backend, Deadlines, Group
from llm_mlx_promptcache.engine.meeting import listen, meet
from llm_mlx_promptcache.engine.rank_links import FrameKind, frame


def met(size, *, secrets=None, deadlines=None, names="mac", **groups):
    """`meet` of all ranks at once: what each got, or the error."""
    sock = listen(("127.0.0.1", 0))
    address = sock.getsockname()

    def one(rank):
        group = Group(**{"rank": rank, "size": size, **groups.get(f"rank{rank}", {})})
        secret = (secrets or {}).get(rank, SECRET)
        place = address if group.rank else sock
        ended = Ended()
        ranks = meet(group, place, secret, f"{names}{rank}", deadlines or Deadlines(), ended)
        ranks.told = ended.whys
        return ranks

    try:
        return each(range(size), one)
    finally:
        sock.close()


def told(found):
    return [str(one) for one in found if isinstance(one, BaseException)]


def test_ranks_meet_and_know_each_other():
    found = met(3)
    assert told(found) == []
    assert [one.name for one in found[0].seen()] == ["mac0", "mac1", "mac2"]
    assert [one.name for one in found[2].seen()] == ["mac2", "mac0"]
    found[0].tell({"a": 1})
    assert found[2].hear() == {"a": 1}
    end(found[:1])


def test_a_rank_that_does_not_come_is_named():
    sock = listen(("127.0.0.1", 0))
    with pytest.raises(GroupEnded, match=r"^ranks 1, 2 did not come within 0.1 seconds$"):
        meet(Group(0, 3), sock, SECRET, deadlines=Deadlines(meeting=0.1))
    free = listen(("127.0.0.1", 0))
    address = free.getsockname()
    free.close()
    with pytest.raises(
        GroupEnded, match=r"^rank 0 was not reached at 127.0.0.1:\d+ within 0.2 sec"
    ):
        meet(Group(1, 3), address, SECRET, deadlines=Deadlines(meeting=0.2))


def test_another_secret_is_refused_and_waited_past():
    found = met(2, secrets={1: SECRET[::-1]}, deadlines=Deadlines(meeting=0.5))
    assert told(found) == [
        "rank 1 did not come within 0.5 seconds; somebody connected who came with another secret",
        found[1].args[0],
    ]
    assert found[1].args[0].endswith(" refused this rank's secret")
    with pytest.raises(ValueError, match="the secret has 3 bytes; give 16 random ones or more"):
        meet(Group(1, 2), ("127.0.0.1", 1), b"abc")


def test_strangers_are_told_nothing_and_end_nothing():
    sock = listen(("127.0.0.1", 0))
    strangers = [socket.create_connection(sock.getsockname()) for _ in range(3)]
    strangers[0].sendall(frame(FrameKind.END, {"why": "let me in"}) * 10)
    strangers[1].close()
    strangers[2].sendall(b"w\xff\xff\xff" + b"{" * 100_000)
    address = sock.getsockname()
    found = each([0, 1], lambda rank: meet(Group(rank, 2), address if rank else sock, SECRET))
    assert told(found) == []
    assert len(strangers[0].recv(1000)) == len(rank_links._GREETING) + rank_links._NONCE
    end(found[:1])
    for one in strangers:
        one.close()


def test_strangers_who_say_nothing_keep_no_rank_waiting():
    sock = listen(("127.0.0.1", 0))
    address = sock.getsockname()[:2]
    # One after another they would take longer than a meeting may.
    silent = [socket.create_connection(address) for _ in range(20)]
    try:
        head, other = each(
            [(Group(0, 2), sock), (Group(1, 2), address)],
            lambda one: meet(*one, SECRET, on_end=lambda why: None),
        )
        head.tell({"at": 1})
        assert other.hear() == {"at": 1}
        end([head, other])
    finally:
        for one in silent:
            one.close()


def test_a_head_that_does_not_know_the_secret_hears_nothing():
    """A listener in rank 0's place gets a proof that opens nothing, and not one word."""
    with listen(("127.0.0.1", 0)) as sock:
        heard = []

        def lie():
            other, _ = sock.accept()
            other.sendall(rank_links._GREETING + b"n" * 32)
            heard.append(other.recv(64))
            # What it was told is no proof in its own mouth.
            other.sendall(heard[0][32:])
            heard.append(other.recv(64))
            other.close()

        liar = threading.Thread(target=lie)
        liar.start()
        with pytest.raises(GroupEnded, match=r"has another secret$"):
            meet(Group(1, 2), sock.getsockname(), SECRET)
        liar.join(10)
    assert heard[1] == b""


UNFIT = {
    "size": ({"size": 3}, "mac1 came with size 3, and rank 0 has 2"),
    "split": ({"split": "pipeline"}, "mac1 came with split pipeline, and rank 0 has tensor"),
    "backend": ({"backend": Backend.JACCL}, "mac1 came with backend jaccl, and rank 0 has ring"),
}


@pytest.mark.parametrize(("other", "why"), UNFIT.values(), ids=UNFIT)
def test_who_is_of_another_group_is_named_to_both(other, why):
    assert told(met(2, rank1=other)) == [why, why]


def test_two_that_are_one_rank_are_named():
    found = met(3, rank2={"rank": 1})
    assert isinstance(found[0], GroupEnded)
    assert str(found[0]) in (f"mac{a} and mac{3 - a} both came as rank 1" for a in (1, 2))
