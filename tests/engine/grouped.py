"""Groups of ranks inside one process: linked by socket pairs, stepped by hand or by threads."""

import socket
import threading

from llm_mlx_promptcache.engine.group import Deadlines, Group, GroupEnded
from llm_mlx_promptcache.engine.rank_links import RankLink
from llm_mlx_promptcache.engine.ranks import Ranks

SECRET = b"0123456789abcdef"


class Clock:
    """A clock that stands until it is told to go on."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Ended:
    """The reasons given to `on_end`."""

    def __init__(self):
        self.whys = []

    def __call__(self, why):
        self.whys.append(why)


def group_of(size, clock=None, **group):
    """The ranks of a group, each with `ended`; nobody beats or listens until told to."""
    deadlines = Deadlines() if clock is None else Deadlines(clock=clock)
    pairs = {rank: socket.socketpair() for rank in range(1, size)}
    links = {rank: [RankLink(theirs, 0, "mac0")] for rank, (_, theirs) in pairs.items()}
    links[0] = [RankLink(mine, rank, f"mac{rank}") for rank, (mine, _) in pairs.items()]
    made = []
    for rank in range(size):
        ended = Ended()
        one = Ranks(Group(rank, size, **group), links[rank], f"mac{rank}", deadlines, ended)
        one.told = ended.whys
        made.append(one)
    return made


def each(ranks, work):
    """`work(rank)` of all ranks at once, in threads: what each returned, or raised."""
    found = [None] * len(ranks)

    def run(at):
        try:
            found[at] = work(ranks[at])
        except BaseException as error:
            found[at] = error

    places = range(len(ranks))
    threads = [threading.Thread(target=run, args=(at,), daemon=True) for at in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a rank hangs"
    return found


def end(ranks):
    """End what is left of a group, and wait for its threads."""
    for one in ranks:
        one.close()
    for thread in threading.enumerate():
        if thread.name == "ranks":
            thread.join(10)
            assert not thread.is_alive()


__all__ = ["SECRET", "Clock", "Ended", "GroupEnded", "each", "end", "group_of"]
