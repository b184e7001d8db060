"""A host that answers hellos and a question or two: what who starts one needs of it, no more.

`python stand_in_host.py KIND ...`: the first that runs is of the first kind, and so on; the last
kind is for all later ones. Each writes a line with its number to `started` in its place.
"""

import os
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from llm_mlx_promptcache.host.frames import Channel, FrameError
from llm_mlx_promptcache.host.hello import difference, hello
from llm_mlx_promptcache.host.place import host_place


def kind_of(place, kinds):
    with (place.folder / "started").open("a+") as file:
        file.write(f"{os.getpid()}\n")
        file.seek(0)
        number = len(file.readlines())
    return kinds[min(number, len(kinds)) - 1]


def itself():
    """The state and environment of this process."""
    umask = os.umask(0)
    os.umask(umask)
    listing = Path(f"/proc/{os.getpid()}/fd")
    return {
        "environment": dict(os.environ),
        "cwd": str(Path.cwd()),
        "umask": umask,
        "session": os.getsid(0),
        "files": listing.exists() and [str((listing / str(fd)).readlink()) for fd in (0, 1, 2)],
    }


class StandIn:
    def __init__(self, place, kind):
        self.place, self.kind = place, kind
        self.stopping = kind == "stopping"
        self.mine = hello(place)
        if kind != "current":
            self.mine["build"]["mlx"] = "0.0.1"
        if kind == "another protocol":
            self.mine["protocol"] = 2

    def serve(self, listener):
        while True:
            sock, _ = listener.accept()
            if self.kind == "leaves":
                os._exit(0)
            threading.Thread(target=self.meet, args=[sock], daemon=True).start()

    def meet(self, sock):
        with sock, suppress(FrameError, OSError):
            self.answer(Channel(sock))

    def answer(self, channel):
        greeting = channel.receive(60)
        if greeting is None:
            return
        busy = 1 if self.kind == "busy" else 0
        why = "it is stopping" if self.stopping else difference(self.mine, greeting["hello"])
        if why:
            channel.send({"refused": why, "busy": busy, "stopping": self.stopping}, 60)
            if self.stopping:
                self.leave()
            return
        welcome = {"pid": os.getpid(), "protocol": 1, "build": self.mine["build"], "busy": busy}
        channel.send({"welcome": welcome}, 60)
        ask = channel.receive(60)
        if ask is None:
            return
        if ask["ask"] == "stop" and ask.get("idle") and self.kind == "busy just now":
            channel.send({"error": {"kind": "HostBusy", "text": "it answers"}}, 60)
        elif ask["ask"] == "stop":
            channel.send({"result": {}}, 60)
            self.leave()
        else:
            channel.send({"result": itself()}, 60)

    def leave(self):
        self.place.socket.unlink()
        os._exit(0)


def main():
    place = host_place()
    with FileLock(place.life_lock, mode=0o600).acquire(timeout=60):
        kind = kind_of(place, sys.argv[1:])
        if kind == "fails":
            sys.exit("it can't begin")
        if kind == "never listens":
            threading.Event().wait()
        place.socket.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(place.socket))
            listener.listen(256)
            StandIn(place, kind).serve(listener)


if __name__ == "__main__":
    main()
