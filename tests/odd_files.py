"""Things that may stand where a small file is read, to be neither waited for nor read whole."""

import contextlib
import os
import socket

GIGABYTE = 1 << 30


def _folder(path):
    path.mkdir()


def _socket(path):
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path.name)  # the whole path may be longer than a socket's


def _huge(path):
    with path.open("wb") as file:
        file.truncate(GIGABYTE)


MAKERS = {"pipe": os.mkfifo, "folder": _folder, "socket": _socket, "huge": _huge}
