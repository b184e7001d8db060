"""One rank as a process, for tests: rank 0 takes commands, a JSON line each, and answers each so.

python rank_process.py '{"rank": 0, "size": 2, "split": "tensor", "port": ..., "folder": ...}'
"""

import errno
import json
import os
import socket
import sys
import time
from array import array
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "cache")]

from readers import Reader, planner_of, steady_clock  # noqa: E402

from llm_mlx_promptcache.cache.disk.files import Files  # noqa: E402
from llm_mlx_promptcache.cache.disk.store import DiskStore  # noqa: E402
from llm_mlx_promptcache.cache.identity import Identity, namespace_of  # noqa: E402
from llm_mlx_promptcache.cache.prompt_cache import PromptCache  # noqa: E402
from llm_mlx_promptcache.engine.followers import FollowerParts, follow, rank_identity  # noqa: E402
from llm_mlx_promptcache.engine.group import Deadlines, Group, GroupEnded  # noqa: E402
from llm_mlx_promptcache.engine.leading import Leader  # noqa: E402
from llm_mlx_promptcache.engine.meeting import meet  # noqa: E402
from llm_mlx_promptcache.engine.mlx_group import connect  # noqa: E402
from llm_mlx_promptcache.engine.parts import LoadReport  # noqa: E402
from llm_mlx_promptcache.engine.ranks import EXIT_STATUS  # noqa: E402
from llm_mlx_promptcache.engine.scheduler import Scheduler  # noqa: E402
from llm_mlx_promptcache.engine.sharding import load_shard  # noqa: E402
from llm_mlx_promptcache.engine.wire import from_json, to_json  # noqa: E402
from llm_mlx_promptcache.models.identities import identify  # noqa: E402


def told(**what):
    """Say it in one piece: the line's thread may say why it ends beside the main one."""
    os.write(1, f"{json.dumps(what)}\n".encode())


def ended(why):
    told(ended=why)
    os._exit(EXIT_STATUS)


def main(given):
    group = Group(given["rank"], given["size"], given["split"])
    deadlines = Deadlines(**given.get("deadlines", {}))
    secret = given["secret"].encode()
    ranks = meet(group, ("127.0.0.1", given["port"]), secret, f"mac{group.rank}", deadlines, ended)
    late_or_gone(given)
    joined = connect(ranks)
    loaded = load_shard(given["folder"], group, joined)
    faulty(loaded, ranks, given.get("fault"))
    found = identify(loaded, Path(given["disk"]))
    identity = rank_identity(Identity(found.model, found.rows), ranks)
    switches = Path(given["disk"]) / "switches"
    cache = PromptCache("100MB", DiskStore(Path(given["disk"]) / "spans", files=Filling(switches)))
    skipping(cache, switches)
    if group.rank:
        told(ready=True)
        if given.get("skew"):
            skew(ranks)
        follow(ranks, joined, FollowerParts(loaded, identity, cache, "tiny", found.uncached))
        told(left=True, **held(cache))
        return
    report = LoadReport("tiny", ahead=given.get("ahead", False))
    parts = Leader(ranks, joined).parts(loaded, identity, cache, report)
    parts = replace(parts, planner=planner_of(given["chunk"]))
    scheduler = Scheduler(loaded, identity, parts, report, clock=steady_clock())
    counted = count_bytes(ranks)
    told(ready=True)
    for line in sys.stdin:
        command = json.loads(line)
        told(**COMMANDS[command["do"]](scheduler, cache, ranks, counted, command))
    scheduler.settle(last=True)
    ranks.close()
    told(left=True, **held(cache))


def skew(ranks):
    """Have this rank told other prompts than the others are, by a token."""
    real = ranks.hear

    def hear():
        word = real()
        if word is not None and "ids" in word:
            word["ids"][-1] ^= 1
        return word

    ranks.hear = hear


def late_or_gone(given):
    """`late`: seconds that this rank takes to import MLX; `gone`: it dies as MLX's ranks meet."""
    time.sleep(given.get("late", 0))
    if given.get("gone"):
        mx.distributed.init = lambda **_: os.kill(os.getpid(), 9)


class Filling(Files):
    """A disk that is full while there is a file of that name among the switches."""

    def __init__(self, switches):
        self._switch = switches / "full"

    def create(self, path):
        if self._switch.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().create(path)


def skipping(cache, switches):
    """Have this rank keep nothing while the switch `skip` is there."""
    real = cache.insert_path

    def insert_path(*arguments, **named):
        if not (switches / "skip").exists():
            real(*arguments, **named)

    cache.insert_path = insert_path


def held(cache):
    stats = cache.stats()
    return {"check": cache.check(), "reused": stats["tokens_reused"], "spans": stats["memory"]}


def faulty(loaded, ranks, fault):
    """`fault` {"after": n, "error": ...}: something goes wrong in the model's n-th pass."""
    if fault is None:
        return
    real, calls = type(loaded.model).__call__, []

    def call(self, tokens, cache=None):
        calls.append(1)
        if len(calls) > fault["after"]:
            if fault["error"] == "memory":
                raise MemoryError("[metal::malloc] no more memory")
            if fault["error"] == "stop":
                os.kill(os.getpid(), 19)
            if fault["error"] == "kill":
                os.kill(os.getpid(), 9)
            if fault["error"] == "cut":
                for link in ranks._links.values():
                    link.sock.shutdown(socket.SHUT_RDWR)
        return real(self, tokens, cache=cache)

    type(loaded.model).__call__ = call


def count_bytes(ranks):
    """Bytes of all words that rank 0 tells, by what they do; of tokens' ids none are counted."""
    counted, real = {}, ranks.tell

    def tell(word):
        plain = {name: part for name, part in word.items() if name not in ("ids", "new", "r")}
        size = 4 + len(json.dumps(plain, separators=(",", ":")))
        kind = word.get("do", "chunk" if "c" in word else "step")
        counted[kind] = [counted.get(kind, [0, 0])[0] + 1, counted.get(kind, [0, 0])[1] + size]
        real(word)

    ranks.tell = tell
    return counted


def ask(scheduler, cache, ranks, counted, command):
    """All requests at once; `gone` of them leave after so many events."""
    gone = command.get("gone") or [None] * len(command["requests"])
    counted.clear()
    readers = [
        Reader(from_json(one), after) for one, after in zip(command["requests"], gone, strict=True)
    ]
    for one in readers:
        scheduler.add(one)
    turns, forget = 0, command.get("forget")
    while scheduler.busy:
        if turns == forget:
            scheduler.kv.forget()
        scheduler.step()
        turns += 1
    scheduler.settle()
    while scheduler.ahead is not None and scheduler.ahead.left:
        scheduler.ahead.step()
    return {"answers": [outcome(one) for one in readers], "told": counted}


def outcome(reader):
    *events, end = reader.events
    assert end is None
    event = events[-1] if events else None
    if isinstance(event, BaseException):
        return {"error": str(event), "kind": type(event).__name__}
    return to_json(event) if event is not None else {}


def forget(scheduler, cache, ranks, counted, command):
    return {"freed": scheduler.kv.forget()}


def set_pinned(scheduler, cache, ranks, counted, command):
    """Pin or unpin the longest path in memory of a salt, on all ranks."""
    namespace = namespace_of(scheduler.kv._identity, command["salt"])
    paths = [one.tokens for one in cache.paths() if one.namespace == namespace]
    path = max(paths, key=len, default=array("I", [1]))
    return {"done": scheduler.kv.set_pinned(namespace, path, pinned=command["pinned"])}


def seen(scheduler, cache, ranks, counted, command):
    return {"seen": [list(one) for one in ranks.seen()]}


def stats(scheduler, cache, ranks, counted, command):
    counted = cache.stats()
    del counted["disk"]
    return {"stats": counted, "check": cache.check()}


COMMANDS = {"ask": ask, "forget": forget, "set_pinned": set_pinned, "seen": seen, "stats": stats}

if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]))
    except GroupEnded as error:
        ended(str(error))
