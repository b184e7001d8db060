"""The meeting of a group's ranks: all of them connect to rank 0, and prove the secret.

ranks = meet(group, address, secret, name)      # on every rank; 60 seconds. No MLX here.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Final

from ..models.errors import one_line
from .group import Address, Deadlines, Group, GroupEnded
from .rank_links import FrameKind, LinkError, RankLink, admit, check_secret, introduce
from .ranks import Ranks, leave

PROTOCOL: Final = 1

# Of one who connects, stranger or not, and how many are heard side by side; others wait meanwhile.
_PROOF_SECONDS: Final = 5.0
_MOST_HEARD: Final = 64
_LONGEST_NAME: Final = 100
_PAUSE: Final = 0.1  # between two tries to reach rank 0, in seconds
_BACKLOG: Final = 128


# A link and what its rank tells of itself, or why it was turned away.
_Came = SimpleQueue[tuple[RankLink, dict[str, Any]] | LinkError]


@dataclass(frozen=True)
class _Oneself:
    """A rank's part in a meeting: its place, the secret, and its host's name for people."""

    group: Group
    secret: bytes
    name: str

    def told(self) -> dict[str, Any]:
        """The description of itself that it gives, once the secret is proven."""
        group = self.group
        return {
            "protocol": PROTOCOL,
            "rank": group.rank,
            "size": group.size,
            "split": group.split,
            "backend": group.backend.of_mlx,
            "name": self.name[:_LONGEST_NAME],
        }


def listen(address: Address) -> socket.socket:
    """A socket that rank 0 meets the others at; port 0 takes a free one."""
    return socket.create_server(address, backlog=_BACKLOG)


def meet(
    group: Group,
    address: Address | socket.socket,
    secret: bytes,
    name: str = "",
    deadlines: Deadlines = Deadlines(),  # noqa: B008 (nobody can change it)
    on_end: Callable[[str], None] = leave,
) -> Ranks:
    """All ranks of a group, each of which calls this; GroupEnded where they don't come together.

    `address` is where rank 0 listens (or its socket, from `listen`) and the others connect;
    `secret` is the same random bytes on all; `name` is what people call this rank's host. `on_end`
    is called once with why the group ended, if it ends by anything but `close`: it tells who still
    waits for an answer, and ends the process (`leave`).
    """
    check_secret(secret)
    oneself = _Oneself(group, secret, name or socket.gethostname())
    if group.rank:
        assert not isinstance(address, socket.socket)
        links = [_joined(oneself, address, deadlines)]
    else:
        with address if isinstance(address, socket.socket) else listen(address) as sock:
            links = _gathered(oneself, sock, deadlines)
    ranks = Ranks(group, links, oneself.name, deadlines, on_end)
    ranks.start()
    return ranks


def _gathered(oneself: _Oneself, sock: socket.socket, deadlines: Deadlines) -> list[RankLink]:
    """Rank 0: a link to each of the others; GroupEnded where they don't come in time.

    Who does not know the secret is turned away, and waited past.
    """
    links: dict[int, RankLink] = {}
    came: _Came = SimpleQueue()
    heard = 0  # who have not proven themselves yet
    turned_away = ""
    until = deadlines.clock() + deadlines.meeting
    try:
        while len(links) < oneself.group.size - 1:
            left = until - deadlines.clock()
            if left <= 0:
                raise GroupEnded(_missing(oneself.group, links, deadlines) + turned_away)
            sock.settimeout(min(left, _PAUSE))
            if heard < _MOST_HEARD:
                with suppress(TimeoutError):
                    _hear(oneself, sock.accept()[0], min(_PROOF_SECONDS, left), came)
                    heard += 1
            with suppress(Empty):
                one = came.get(timeout=0.0 if heard < _MOST_HEARD else _PAUSE)
                heard -= 1
                if isinstance(one, LinkError):
                    turned_away = f"; somebody connected who {one}"
                else:
                    link = _admitted(oneself, *one, links)
                    links[link.peer] = link
        for link in links.values():
            link.send(FrameKind.SHARE, {"name": oneself.name[:_LONGEST_NAME]})
    except (GroupEnded, LinkError, OSError) as error:
        why = error if isinstance(error, GroupEnded) else f"the ranks could not meet: {error}"
        for link in links.values():
            with suppress(LinkError):
                link.send(FrameKind.END, {"why": str(why)})
            link.close()
        raise GroupEnded(str(why)) from error
    return list(links.values())


def _joined(oneself: _Oneself, address: Address, deadlines: Deadlines) -> RankLink:
    """Another rank: its link to rank 0, which need not listen yet; GroupEnded."""
    until = deadlines.clock() + deadlines.meeting
    sock = _connected(address, until, deadlines)
    try:
        introduce(sock, oneself.secret, max(0.1, until - deadlines.clock()))
        _nodelay(sock)
        link = RankLink(sock, 0, address[0])
        link.send(FrameKind.SHARE, oneself.told())
        kind, data = _next(link, max(0.1, until - deadlines.clock()))
    except LinkError as error:
        sock.close()
        raise GroupEnded(f"rank 0 at {address[0]}:{address[1]} {error}") from error
    if kind is not FrameKind.SHARE or not isinstance(data.get("name"), str):
        sock.close()
        raise GroupEnded(one_line(str(data.get("why") or "rank 0 said what is no word of ours")))
    link.name = _name(data)
    return link


def _hear(oneself: _Oneself, sock: socket.socket, seconds: float, came: _Came) -> None:
    """Have one who has connected prove the secret, in a thread: strangers keep nobody waiting."""

    def prove() -> None:
        try:
            admit(sock, oneself.secret, seconds)
            _nodelay(sock)
            link = RankLink(sock, 0, "a rank")
            came.put((link, _next(link, seconds)[1]))
        except (LinkError, OSError) as error:
            sock.close()
            came.put(error if isinstance(error, LinkError) else LinkError("is gone"))

    threading.Thread(target=prove, name="meeting", daemon=True).start()


def _admitted(
    oneself: _Oneself, link: RankLink, told: Mapping[str, Any], links: Mapping[int, RankLink]
) -> RankLink:
    """The link of one who knows the secret; GroupEnded where it is no rank of this group."""
    why = _unfit(oneself, told, links)
    if why:
        with suppress(LinkError):
            link.send(FrameKind.END, {"why": why})
        link.close()
        raise GroupEnded(why)
    link.peer, link.name = told["rank"], _name(told)
    return link


def _unfit(oneself: _Oneself, told: Mapping[str, Any], links: Mapping[int, RankLink]) -> str:
    """The reason why one who knows the secret is no rank of this group; "" where it is."""
    mine, rank = oneself.told(), told.get("rank")
    name = _name(told)
    for fact in ("protocol", "size", "split", "backend"):
        if told.get(fact) != mine[fact]:
            other = one_line(str(told.get(fact)), 40)
            return f"{name} came with {fact} {other}, and rank 0 has {mine[fact]}"
    if type(rank) is not int or not 0 < rank < oneself.group.size:
        most = oneself.group.size - 1
        return f"{name} came as rank {one_line(str(rank), 40)}; others are 1 to {most}"
    if rank in links:
        return f"{name} and {links[rank].name} both came as rank {rank}"
    return ""


def _missing(group: Group, links: Mapping[int, RankLink], deadlines: Deadlines) -> str:
    missing = [rank for rank in range(1, group.size) if rank not in links]
    ranks = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
    return f"{ranks} did not come within {deadlines.meeting:g} seconds"


def _connected(address: Address, until: float, deadlines: Deadlines) -> socket.socket:
    while True:
        left = until - deadlines.clock()
        try:
            return socket.create_connection(address, timeout=max(left, 0.1))
        except OSError as error:
            if left <= _PAUSE:
                raise GroupEnded(
                    f"rank 0 was not reached at {address[0]}:{address[1]} within"
                    f" {deadlines.meeting:g} seconds ({one_line(error, 80)})"
                ) from error
            time.sleep(_PAUSE)


def _next(link: RankLink, seconds: float) -> tuple[FrameKind, dict[str, Any]]:
    """The first frame of a link; LinkError where none comes in time."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        select.select([link.sock], [], [], left)
        for kind, data in link.received():
            return kind, data
    raise LinkError("said too little in time")


def _nodelay(sock: socket.socket) -> None:
    """Words are small, and each is waited for."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _name(told: Mapping[str, Any]) -> str:
    name = told.get("name")
    return one_line(name, _LONGEST_NAME) if isinstance(name, str) else "a rank"
