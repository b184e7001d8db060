"""Words between ranks: told, agreed, bounded, and an end in words where a rank is gone."""

import json
import socket
import subprocess
import sys
import threading

import pytest
from grouped import Clock, GroupEnded, each, end, group_of

from llm_mlx_promptcache.engine import rank_links
from llm_mlx_promptcache.engine.group import Group
from llm_mlx_promptcache.engine.rank_links import FrameKind, LinkError, RankLink, frame
from llm_mlx_promptcache.engine.ranks import EXIT_STATUS


@pytest.fixture
def trio():
    """Three ranks that listen and beat."""
    ranks = group_of(3)
    for one in ranks:
        one.start()
    yield ranks
    end(ranks)


@pytest.fixture
def still():
    """`still(size)` -> ranks whose clock stands, which take a turn where the test says so."""
    made = []

    def make(size=2):
        clock = Clock()
        made.extend(group_of(size, clock))
        return clock, made[-size:]

    yield make
    for one in made:
        one.shut()


def turns(ranks):
    """A turn of each rank that goes on."""
    for one in ranks:
        if not one.ended:
            one.turn(0)


def test_words_come_in_order_and_an_empty_one_takes_six_bytes(trio):
    head, *others = trio
    words = [{}, {"ids": list(range(1000))}, {"text": "\ud800"}, {}]
    for word in words:
        head.tell(word)
    for one in others:
        assert [one.hear() for _ in words] == words
    assert len(frame(FrameKind.WORD, {})) == 6


def test_law_18_all_ranks_agree_on_the_least_and_the_most(trio):
    numbers = {0: (5, 9, 1), 1: (7, 3, 1), 2: (6, 6, 1)}
    for _ in range(3):
        found = each(trio, lambda one: one.agree(*numbers[one.group.rank]))
        assert found == [([5, 3, 1], [7, 9, 1])] * 3


def test_ranks_that_agree_on_different_things_end(trio):
    found = each(trio, lambda one: one.agree(*range(one.group.rank + 1)))
    assert all(isinstance(error, GroupEnded) for error in found)
    assert {str(error) for error in found} == {
        "the ranks are out of step: each tells another thing"
    }


def test_what_must_be_alike_is_told_with_rank_and_fact(trio):
    versions = {0: "0.32.4", 1: "0.32.4", 2: "0.33.0"}
    each(trio, lambda one: one.check_alike({"mlx": "0.32.4", "prefill": "256"}))
    found = each(trio, lambda one: one.check_alike({"mlx": versions[one.group.rank]}))
    for error in found[:1]:
        assert isinstance(error, GroupEnded)
        assert str(error) == (
            "rank 2 (mac2) has mlx 0.33.0, and rank 0 (mac0) has 0.32.4: they must be the same"
        )
    assert [one.why for one in trio] == [str(found[0])] * 3


def test_law_18_a_silent_rank_is_the_end_in_bounded_time(still):
    clock, ranks = still(3)
    talking = ranks[:2]  # rank 2 is stopped
    told = []
    while not ranks[0].ended and len(told) < 100:
        clock.now += 0.5
        turns(talking)
        turns(talking)
        told.append(clock.now)
    assert len(told) == 21  # beats of half a second: the first that is over ten seconds
    words = "rank 2 (mac2) has said nothing for 10 seconds"
    assert (ranks[0].told, ranks[1].told) == ([words], [words])
    with pytest.raises(GroupEnded, match="said nothing"):
        ranks[1].hear()
    with pytest.raises(GroupEnded, match="said nothing"):
        ranks[0].tell({})


def test_who_was_stopped_itself_blames_nobody(still):
    clock, ranks = still()
    clock.now += 3600
    ranks[0].turn(0)
    assert not ranks[0].ended
    assert ranks[0].seen()[1].seconds == 3600


def test_law_18_a_step_that_does_not_end_is_the_end(still):
    clock, ranks = still()

    def pass_seconds(seconds):
        for _ in range(2 * seconds):
            clock.now += 0.5
            turns(ranks)
            turns(ranks)

    with ranks[1].loading():
        pass_seconds(130)
    with ranks[1].step():
        pass_seconds(119)
        with ranks[1].step():  # counts in the outer one's time
            assert not ranks[1].ended
            pass_seconds(2)
    assert ranks[1].told == [
        "rank 1 (mac1) waits for a step since 120 seconds: a rank may be stuck in it"
    ]
    turns(ranks)
    assert ranks[0].told == ranks[1].told


def test_law_18_a_rank_that_is_gone_ends_who_waits_for_it(trio):
    waiting = threading.Thread(target=lambda: each(trio[:2], lambda one: one.agree(1)))
    waiting.start()
    trio[2]._links[0].sock.shutdown(socket.SHUT_RDWR)
    waiting.join(30)
    assert not waiting.is_alive()
    for one in trio[:2]:
        one._thread.join(30)  # it tells its owner last
    assert trio[0].told == ["rank 2 (mac2) is gone"]
    assert trio[1].told == trio[0].told


def test_law_18_who_is_gone_is_named_where_mlx_tells_of_a_lost_connection_first(trio, monkeypatch):
    monkeypatch.setattr("llm_mlx_promptcache.engine.ranks._LAST_WORDS", 60.0)
    lost = RuntimeError("[ring] connection to a peer was lost")
    failing = threading.Thread(target=lambda: trio[0].failed(lost))
    failing.start()
    trio[2]._links[0].sock.shutdown(socket.SHUT_RDWR)
    failing.join(30)
    assert not failing.is_alive()
    trio[0]._thread.join(30)
    assert trio[0].told == ["rank 2 (mac2) is gone"]


def test_what_a_rank_did_wrong_itself_is_told_at_once(trio, monkeypatch):
    monkeypatch.setattr("llm_mlx_promptcache.engine.ranks._LAST_WORDS", threading.TIMEOUT_MAX)
    trio[1].failed(MemoryError("no memory\nis left"))
    assert trio[1].told == ["rank 1 (mac1) failed: no memory is left"]


@pytest.mark.parametrize("broken", ["turn", "_beat", "_take", "_end_if_overdue"])
@pytest.mark.parametrize("rank", [0, 1])
def test_law_18_whatever_goes_wrong_where_others_are_watched_is_the_end_in_words(broken, rank):
    """Whoever waits is woken, on that rank and on all others; its owner is told once."""
    ranks = group_of(3)

    def fails(*_):
        raise RuntimeError("no file\nis left")

    setattr(ranks[rank], broken, fails)
    for one in ranks:
        one.start()
    found = each(ranks, lambda one: one.agree(1) if one.group.rank == 0 else one.hear())
    end(ranks)
    why = f"rank {rank} (mac{rank}) can't watch the others (RuntimeError: no file is left)"
    assert ranks[rank].told == [why]
    assert all(isinstance(error, GroupEnded) for error in found)
    assert [str(error) for error in found] == [why] * 3


def test_who_fails_is_told_to_all_once(trio):
    error = trio[1].fail("rank 1 has\nno memory left" + "!" * 1000)
    assert str(error).startswith("rank 1 has no memory left!")
    assert len(str(error)) == 500
    found = each(trio, lambda one: one.agree(1))
    assert {str(one) for one in found} == {str(error)}
    trio[2].fail("something else")
    assert [one.told for one in trio] == [[str(error)]] * 3


def test_a_close_that_is_not_read_yet_is_no_loss(still):
    _, (head, other) = still()
    head.close()
    for link in head._links.values():
        link.close()
    with pytest.raises(GroupEnded, match="closed"):
        other.agree(1)  # what it sends fails before it has read anything
    assert other.why == ""
    assert other.hear() is None


def test_a_group_that_is_closed_ends_in_no_error(trio):
    heard = []
    hearing = threading.Thread(target=lambda: heard.extend(each(trio[1:], lambda one: one.hear())))
    hearing.start()
    trio[0].close()
    hearing.join(30)
    assert heard == [None, None]
    assert [one.told for one in trio] == [[], [], []]


def test_another_rank_that_leaves_is_none_that_closes(trio):
    trio[1].close()
    found = each(trio[::2], lambda one: one.agree(1))
    assert {str(one) for one in found} == {"rank 1 (mac1) has left"}


def test_a_rank_is_seen_with_what_it_holds_and_when_it_spoke(still):
    clock, ranks = still(3)
    ranks[1].held, ranks[0].held = 5_000, 7_000
    clock.now += 0.5
    turns(ranks)
    turns(ranks)
    clock.now += 0.25
    assert [tuple(one) for one in ranks[0].seen()] == [
        (0, "mac0", 0.0, 7_000),
        (1, "mac1", 0.25, 5_000),
        (2, "mac2", 0.25, 0),
    ]


def test_a_rank_that_reads_nothing_blocks_nobody_and_gets_all_of_it_later(still):
    _, ranks = still()
    word = {"ids": [123_456] * 200_000}  # more than a socket holds
    for _ in range(3):
        ranks[0].tell(word)
    assert ranks[0]._links[1].waits
    while len(ranks[1]._words) < 3:
        turns(ranks)
    assert ranks[1].hear() == word
    assert not ranks[0]._links[1].waits


def test_words_that_wait_are_bounded(still, monkeypatch):
    monkeypatch.setattr(rank_links, "_MOST_WAITING", 1 << 20)
    _, ranks = still()

    def tell_all():
        for _ in range(10):
            ranks[0].tell({"ids": [123_456] * 50_000})

    with pytest.raises(GroupEnded, match=r"^rank 1 \(mac1\) reads nothing$"):
        tell_all()


NONSENSE = {
    "kind": b"x\0\0\2{}",
    "no JSON": b"w\0\0\2{]",
    "no object": b"w\0\0\2[]",
    "no text": b"w\0\0\2\xff\xfe",
    "depth": b"w" + (200_000).to_bytes(3, "big") + b"[" * 200_000,
}


@pytest.mark.parametrize("sent", NONSENSE.values(), ids=NONSENSE)
def test_what_is_no_frame_is_the_end_in_words(still, sent):
    _, ranks = still()
    ranks[1]._links[0]._unsent += sent
    for _ in range(10):
        turns(ranks)
    assert ranks[0].told == ["rank 1 (mac1) said what is no word of ours"]


def test_a_frame_in_pieces_is_one(still):
    _, ranks = still()
    sock = ranks[1]._links[0].sock
    for byte in frame(FrameKind.BEAT, {"held": 3}):
        sock.send(bytes([byte]))
        ranks[0].turn(0)
    assert ranks[0].seen()[1].held == 3


def test_a_word_that_is_too_long_is_refused(still, monkeypatch):
    monkeypatch.setattr(rank_links, "MOST_BYTES", 100)
    _, ranks = still()
    with pytest.raises(ValueError, match="at most 100"):
        ranks[0].tell({"text": "a" * 100})


@pytest.mark.parametrize(
    "group",
    [{"size": 1}, {"size": 65}, {"rank": 2}, {"rank": -1}, {"split": "rows"}],
)
def test_groups_that_can_not_be_are_refused(group):
    with pytest.raises(ValueError, match=next(iter(group))):
        Group(**{"rank": 0, "size": 2, **group})


def test_a_shard_bears_its_place():
    assert Group(0, 2).shard == "tensor 1/2"
    assert Group(2, 3, "pipeline").shard == "pipeline 3/3"


def test_who_leaves_says_why_and_ends_whatever_its_threads_do():
    code = (
        "import threading; from llm_mlx_promptcache.engine.ranks import leave;"
        "threading.Thread(target=threading.Event().wait).start(); leave('rank 1 (mac1) is gone')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (EXIT_STATUS, "rank 1 (mac1) is gone\n")


def test_words_need_no_mlx():
    code = "import sys, llm_mlx_promptcache.engine.meeting; print('mlx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr


def test_frames_of_a_link_are_what_json_gives_back():
    one, other = socket.socketpair()
    links = RankLink(one, 1, "a"), RankLink(other, 0, "b")
    data = json.loads('{"a": [1, 2.5, null, "\\u00e4"]}')
    links[0].send(FrameKind.SHARE, data)
    assert list(links[1].received()) == [(FrameKind.SHARE, data)]
    assert list(links[1].received()) == []
    links[0].close()
    with pytest.raises(LinkError, match="gone"):
        list(links[1].received())
    links[1].close()
