"""Processes without the second of imports: a server that has imported all they need forks them.

A fork is a process as any other: its own memory, files, environment, signals and exit status. What
only a new interpreter shows (what is imported and when, how `llm` starts) tests ask of a real one.

`llm()` starts a server, and gives an executable that stands for `llm`; `python()` is one for a
Python that runs a script, or code behind -c, as users of LangChain do; `host()` is one for a Python
that runs a host, in what `llm` or this process starts a host with. They hand the server their
arguments, environment, folder and files, pass signals on, and end as the fork does. Where the
environment differs in what an interpreter reads as it starts, they run the real program.
"""

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from llm_mlx_promptcache.host.environment import of_host

LLM = str(Path(sys.executable).with_name("llm"))
# What commands look up each time they run; all else is as it was when the server began.
FREE = {
    *("LLM_USER_PATH", "LLM_MLX_CACHED_HOME", "LLM_MLX_CACHED_KEEP", "LLM_MLX_CACHED_AHEAD"),
    *("LLM_MLX_CACHED_DISK", "SCRIPTED_RUNS", "PYTEST_CURRENT_TEST", "PYTHONPATH"),
    *("MLX_RANK", "MLX_HOSTFILE", "FORKED_HOSTS"),
    *("PATH", "PWD", "OLDPWD", "SHLVL", "_", "COLUMNS", "LINES", "TERM", "NO_COLOR"),
}
# A variable of forks of `llm`: the program with which they start a host.
HOSTS = "FORKED_HOSTS"
HOST = ["-P", "-m", "llm_mlx_promptcache.host"]  # the arguments of a Python that runs one
_PROGRAMS = {"llm": LLM, "python": sys.executable, "host": sys.executable}
_SERVERS = {"llm": "llm", "python": "python", "host": "llm"}  # the one that forks a program
_MODULES = {
    "llm": ("llm.cli", "mlx_lm.generate", "mlx_lm.models.llama", "transformers.models.auto"),
    "python": (
        *("mlx_lm.generate", "mlx_lm.models.llama", "transformers.models.auto"),
        *("langchain_mlx_cached", "langchain.agents.middleware", "langchain.agents"),
        *("langgraph.graph", "langgraph.checkpoint.memory", "langgraph.checkpoint.sqlite"),
    ),
}
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_STUB = """#!{python} -IS
import array, json, os, signal, socket, sys
env = dict(os.environ)
if {{k: v for k, v in env.items() if k not in {free!r}}} != {fixed!r}:
    os.execv({real!r}, [{real!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
server.connect({address!r})
asked = json.dumps([{program!r}, sys.argv[1:], env, os.getcwd()]).encode()
files = array.array("i", [0, 1, 2]).tobytes()
server.sendmsg([len(asked).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
server.sendall(asked)
for number in {signals!r}:
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, lambda number, _: server.sendall(bytes([number])))
told = server.recv(4)
status = int.from_bytes(told, "big", signed=True) if told else 1
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""


class Forks:
    """The servers of a session, each started when it is first needed, until `close`."""

    def __init__(self, folder, environment):
        self._folder = folder
        self._environment = environment
        self._servers = {}

    def stub(self, program):
        """The stand-in for a program; the real one where it is not safe to fork."""
        if sys.platform != "linux":
            return _PROGRAMS[program]
        server = _SERVERS[program]
        if server not in self._servers:
            self._servers[server] = self._started(server)
        stub = self._folder / server / program
        if not stub.exists():
            self._write(stub, program)
        return str(stub)

    def _write(self, stub, program):
        """The stand-in's file; a host is started with a part of the environment."""
        whole = of_host(self._environment) if program == "host" else self._environment
        stub.write_text(
            _STUB.format(
                python=sys.executable,
                real=_PROGRAMS[program],
                program=program,
                address=str(stub.parent / "forks"),
                fixed={name: value for name, value in whole.items() if name not in FREE},
                free=FREE,
                signals=tuple(map(int, _SIGNALS)),
            )
        )
        stub.chmod(0o700)

    def _started(self, server):
        """A server's process, and what ends it when it is closed."""
        folder = self._folder / server
        folder.mkdir()
        life, held = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-P", __file__, server, str(folder / "forks"), str(life)],
            # Its threads would be lost in forks; `make test` gives it one in each process too.
            env=self._environment | {"OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            pass_fds=[life],
        )
        os.close(life)
        with process.stdout as told:
            assert told.read() == b"ready\n"
        return process, held

    def spent(self):
        """Seconds of processor time of all forks that have ended: they are no children of ours."""
        files = self._folder.glob("*/spent")
        return sum(float(line) for file in files for line in file.read_text().split())

    def close(self):
        """End the servers; a fork that still runs is not their own."""
        for server, held in self._servers.values():
            os.close(held)
            assert server.wait(60) == 0


of_session: Forks | None = None


def llm():
    """The stand-in for `llm` in this session of tests."""
    return of_session.stub("llm")


def python():
    """The stand-in for a Python that runs a script or code."""
    return of_session.stub("python")


def host():
    """The stand-in for the Python that runs a host."""
    return of_session.stub("host")


def _serve(server, address, life):
    """Fork for who connects, until nobody holds the other end of `life`."""
    _import_all(_MODULES[server])
    assert len([*Path("/proc/self/task").iterdir()]) == 1, "a thread would be lost"
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(address)
    listener.listen(64)
    os.write(1, b"ready\n")
    os.dup2(0, 1)
    while life not in select.select([listener, life], [], [])[0]:
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            os.close(life)
            os.chdir(Path(address).parent)
            return _keep(client)
        client.close()
    return None


def _import_all(modules):
    for name in modules:
        # The wheel's tests have the packages that it asks for, and no others.
        if importlib.util.find_spec(name.partition(".")[0]):
            importlib.import_module(name)
    import llm_mlx_promptcache

    for module in pkgutil.walk_packages(llm_mlx_promptcache.__path__, "llm_mlx_promptcache."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def _keep(client):
    """Run a client's command in a process of its own, pass signals on, and tell how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, files, *_ = socket.recv_fds(client, 4, 3)
    size = int.from_bytes(head, "big")
    asked = b""
    while len(asked) < size and (more := client.recv(size - len(asked))):
        asked += more
    child = os.fork()
    if child == 0:
        client.close()
        return _run(files, *json.loads(asked))
    for file in files:
        os.close(file)
    ended = os.pidfd_open(child)
    while ended not in (ready := select.select([client, ended], [], [])[0]):
        assert client in ready
        told = client.recv(1)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, told[0] if told else signal.SIGKILL)
        if not told:
            os._exit(0)
    _, status, used = os.wait4(child, 0)
    status = os.waitstatus_to_exitcode(status)
    with open("spent", "a") as file:  # noqa: PTH123
        file.write(f"{used.ru_utime + used.ru_stime}\n")
    with contextlib.suppress(BrokenPipeError):
        client.sendall(status.to_bytes(4, "big", signed=True))
    os._exit(0)


def _run(files, program, arguments, environment, folder):
    """Run a program: with these files as 0, 1 and 2, arguments, environment and folder."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    os.chdir(folder)
    added = environment.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [path for path in added if path and path not in sys.path]
    with contextlib.suppress(ImportError):
        importlib.import_module("sitecustomize")
    {"llm": _llm, "python": _python, "host": _host}[program](arguments)


def _llm(arguments):
    from llm.cli import cli

    from llm_mlx_promptcache.host import start

    if program := os.environ.pop(HOSTS, ""):
        start.host_command = lambda: [program, *HOST]
    sys.argv = [LLM, *arguments]
    sys.exit(cli())


def _host(arguments):
    """A host, in a session of its own as its starter wants it."""
    from llm_mlx_promptcache.host.main import main

    assert arguments == HOST
    os.setsid()
    sys.argv = [sys.executable, *arguments]
    sys.exit(main())


def _python(arguments):
    """Code behind -c, or a script."""
    if arguments[0] == "-c":
        main = sys.modules["__main__"] = ModuleType("__main__")
        sys.argv = ["-c", *arguments[2:]]
        sys.path.insert(0, "")
        exec(compile(arguments[1], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).parent.absolute()))
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
