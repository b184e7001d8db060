"""A system that is no Linux, played within each Python that starts with this folder on its path.

What only Linux has is taken away from the modules of the system, and /proc and the like are not
there. Who is at the other end of a socket is told as macOS tells it. The system's name stays:
other packages choose by it. Each process says in the file ELSEWHERE names that it was here.
"""

import builtins
import fcntl
import io
import mmap
import os
import resource
import select
import signal
import socket
import struct
import sys
import time

# Of typeshed, what is there on Linux and not on macOS.
MISSING = {
    os: (
        *("posix_fadvise", "posix_fallocate", "sched_getaffinity", "sched_setaffinity"),
        *("fdatasync", "pipe2", "eventfd", "memfd_create", "pidfd_open", "copy_file_range"),
        *("splice", "getrandom", "setxattr", "getxattr", "listxattr", "removexattr", "setns"),
        *("unshare", "getresuid", "setresuid", "getresgid", "setresgid", "sched_getscheduler"),
        *("O_TMPFILE", "O_PATH", "O_DIRECT", "O_NOATIME", "POSIX_FADV_WILLNEED"),
        *("POSIX_FADV_DONTNEED", "POSIX_FADV_SEQUENTIAL", "POSIX_FADV_NORMAL"),
    ),
    socket: (
        *("SO_PEERCRED", "SO_PASSCRED", "SCM_CREDENTIALS", "SOCK_CLOEXEC", "SOCK_NONBLOCK"),
        *("MSG_NOSIGNAL", "MSG_CMSG_CLOEXEC", "SO_DOMAIN", "SO_PROTOCOL", "AF_NETLINK"),
    ),
    fcntl: (
        *("F_OFD_SETLK", "F_OFD_SETLKW", "F_OFD_GETLK", "F_ADD_SEALS", "F_GET_SEALS"),
        *("F_SETPIPE_SZ", "F_GETPIPE_SZ", "F_NOTIFY"),
    ),
    signal: ("sigtimedwait", "sigwaitinfo", "pidfd_send_signal", "SIGPWR", "SIGRTMIN", "SIGPOLL"),
    select: ("epoll",),
    resource: ("prlimit", "RUSAGE_THREAD"),
    time: ("CLOCK_BOOTTIME", "CLOCK_TAI", "pthread_getcpuclockid"),
    mmap: ("MAP_POPULATE", "MADV_HUGEPAGE"),
}
HIDDEN = ("/proc", "/sys", "/dev/shm", "/dev/full", "/etc/ld.so.cache", "/run")
CALLS = {os: ("open", "stat", "lstat", "listdir", "scandir", "readlink"), io: ("open",)}
SOL_LOCAL, LOCAL_PEERCRED, LOCAL_PEERPID = 0, 1, 2


def hiding(call):
    """The same call, for which what only Linux has is not there."""

    def hidden(path=".", *arguments, **more):
        if isinstance(path, str | bytes | os.PathLike):
            name = os.fsdecode(path)
            if any(name == one or name.startswith(f"{one}/") for one in HIDDEN):
                raise FileNotFoundError(2, "No such file or directory", name)
        return call(path, *arguments, **more)

    return hidden


def take_away():
    """Take away what only Linux has, as far as this Python has it."""
    credentials = socket.SO_PEERCRED
    for module, names in MISSING.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    for module, names in CALLS.items():
        for name in names:
            setattr(module, name, hiding(getattr(module, name)))
    builtins.open = io.open
    socket.socket.getsockopt = told_as_on_macos(socket.socket.getsockopt, credentials)


def told_as_on_macos(getsockopt, credentials):
    """`getsockopt` that knows peers as macOS does, and no longer as Linux does."""

    def told(sock, level, option, *size):
        if sock.family != socket.AF_UNIX or level != SOL_LOCAL:
            return getsockopt(sock, level, option, *size)
        pid, uid, gid = struct.unpack("3i", getsockopt(sock, socket.SOL_SOCKET, credentials, 12))
        if option == LOCAL_PEERPID:
            return pid
        assert (option, size) == (LOCAL_PEERCRED, (76,))
        return struct.pack("2Ih2x16I", 0, uid, 1, gid, *[0] * 15)

    return told


if hasattr(socket, "SO_PEERCRED"):
    take_away()
    with open(os.environ["LLM_MLX_CACHED_ELSEWHERE"], "a") as file:  # noqa: PTH123
        file.write(f"{os.getpid()} {os.path.basename(sys.argv[0]) if sys.argv else ''}\n")  # noqa: PTH119
