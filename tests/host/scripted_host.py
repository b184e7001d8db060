"""A host that is a thread of the test and says what it is told to, one script a connection."""

import os
import socket
import threading

from llm_mlx_promptcache.engine import wire
from llm_mlx_promptcache.engine.events import (
    Finished,
    Loading,
    Progress,
    TextDelta,
    Timings,
    Usage,
)
from llm_mlx_promptcache.host.frames import Channel

LONG = 60
PID = 4711


def said(*events):
    """These events as frames."""
    return [{"event": wire.to_json(event)} for event in events]


def finished(text):
    return Finished(
        ids=(7, 8, 2),
        text=text,
        reason="stop",
        usage=Usage(10, 6, 4, 3),
        timings=Timings(0.0, 0.1, 0.2),
        why="the whole of it was stored",
        fingerprint="scripted",
    )


BEFORE = (Loading("loading the model small", aloud=False), Progress(6, 10, 6))
THERE = (TextDelta("there"), finished("there"))
ANSWER = [*said(*BEFORE, *THERE), {"end": True}]
STOPS = object()  # says nothing more until the test is over


class ScriptedHost:
    """Answers one connection after the other; the last script is for all that come later.

    A script is a list of frames, of bytes that are sent as they are, and of STOPS; behind it the
    connection is closed. `hellos` and `asks` are what it was told, `left` how often somebody went
    away while it was silent.
    """

    def __init__(self, place, *scripts):
        self.place, self.scripts = place, list(scripts)
        self.hellos, self.asks, self.left = [], [], threading.Semaphore(0)
        self._over = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(place.socket))
        self._listener.listen(64)
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def close(self):
        """End it, and all its connections."""
        self._over.set()
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(os.fspath(self.place.socket))
        for thread in self._threads:
            thread.join(LONG)
            assert not thread.is_alive()
        self._listener.close()
        self.place.socket.unlink()

    def _serve(self):
        while True:
            sock, _ = self._listener.accept()
            if self._over.is_set():
                sock.close()
                return
            script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
            self._threads.append(threading.Thread(target=self._answer, args=(sock, script)))
            self._threads[-1].start()

    def _answer(self, sock, script):
        channel = Channel(sock)
        try:
            self.hellos.append(channel.receive(LONG)["hello"])
            if script and isinstance(script[0], dict) and "refused" in script[0]:
                channel.send(script[0], LONG)
                return
            channel.send({"welcome": {"pid": PID, "protocol": 1, "build": {}, "busy": 0}}, LONG)
            ask = channel.receive(LONG)
            if ask is not None:
                self.asks.append(ask)
                self._say(sock, channel, script)
        except ConnectionError:
            pass
        finally:
            channel.close()

    def _say(self, sock, channel, script):
        for step in script:
            if step is STOPS:
                self._wait(channel)
            elif isinstance(step, bytes):
                sock.sendall(step)
            else:
                channel.send(step, LONG)

    def _wait(self, channel):
        while not self._over.is_set():
            try:
                if channel.receive(0.05) is None:
                    self.left.release()
                    return
            except TimeoutError:
                continue
