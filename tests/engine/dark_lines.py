"""A network that goes dark: connections that stay open, and carry nothing any more."""

import select
import socket
import threading
from contextlib import suppress


class DarkLine:
    """A port that leads to another one of this machine, until it is `dark`."""

    def __init__(self, port):
        self._target = port
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.port = self._sock.getsockname()[1]
        self._ended, self._dark = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._forward, daemon=True)
        self._thread.start()

    def dark(self):
        """Carry nothing from now on; nobody is told."""
        self._dark.set()

    def end(self):
        self._ended.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _forward(self):
        ways = {}  # each end, and the one that what it says goes to
        while not self._ended.is_set():
            if self._dark.is_set():
                self._ended.wait(1)
                continue
            for sock in select.select([self._sock, *ways], [], [], 0.05)[0]:
                if sock is self._sock:
                    self._take(ways)
                elif sock in ways and not self._carried(sock, ways[sock]):
                    other = ways.pop(sock)
                    del ways[other]
                    sock.close()
                    other.close()
        for sock in (self._sock, *ways):
            sock.close()

    def _take(self, ways):
        near, far = self._sock.accept()[0], None
        while far is None and not self._ended.wait(0.02):
            with suppress(OSError):  # nobody listens there yet
                far = socket.create_connection(("127.0.0.1", self._target))
        if far is None:
            near.close()
            return
        for one, other in ((near, far), (far, near)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ways[one] = other

    @staticmethod
    def _carried(one, other):
        try:
            data = one.recv(1 << 18)
            other.sendall(data)
        except OSError:
            return False
        return bool(data)
