"""A user's home whose models are served over several ranks, and the processes of those."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import forks
import left_hosts
from click.testing import CliRunner
from hostfiles import local, written

from llm_mlx_promptcache.commands import mlx_cached

LONG = 120
MODULE = "llm_mlx_promptcache.machines"
# A Python on the other machine whose rank differs in one thing.
OTHER_PYTHON = """#!/bin/sh
exec {python} -P -c "
from llm_mlx_promptcache.machines import rank_main
{change}
raise SystemExit(rank_main.main())" "$@"
"""


class ServedHome:
    """`llm` of one user, who has one model and a machine `mac1` that ssh leads to."""

    def __init__(self, folder, model):
        self.folder, self.model = folder, str(model)
        self.ssh_log = folder / "ssh.log"
        hosts = [local(1)[0], {"ssh": "mac1", "ips": ["127.0.0.1"]}]
        self.hosts = written(folder / "hosts.json", hosts)

    def write_ssh(self, text):
        """Write the program that is `ssh` to this user."""
        ssh = self.folder / "bin" / "ssh"
        ssh.parent.mkdir()
        ssh.write_text(text)
        ssh.chmod(0o700)

    def other_python(self, change):
        """A Python for the other machine, whose rank differs by these words of Python."""
        python = self.folder / "other-python"
        python.write_text(OTHER_PYTHON.format(python=sys.executable, change=change))
        python.chmod(0o700)
        return python

    @property
    def environment(self):
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return {
            **os.environ,
            "PATH": path,
            "LLM_USER_PATH": str(self.folder / "llm"),
            "LLM_MLX_CACHED_HOME": str(self.folder / "mlx"),
        }

    def llm(self, *arguments, status=0):
        """Run `llm`; what it wrote to stdout and stderr."""
        done = subprocess.run(
            [forks.llm(), *map(str, arguments)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LONG,
        )
        out, errors = (
            each.decode("utf-8", "replace").strip() for each in (done.stdout, done.stderr)
        )
        assert done.returncode == status, errors
        assert "Traceback" not in errors
        return out, errors

    def begin(self, *arguments, stderr=subprocess.DEVNULL):
        """A process of `llm` that goes on."""
        return subprocess.Popen(
            [forks.llm(), *map(str, arguments)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )

    def ours(self, *arguments, status=0):
        """Run `llm mlx-cached ...` in this process, which is faster; its stdout and stderr."""
        done = CliRunner().invoke(mlx_cached, [*map(str, arguments)], env=self.environment)
        assert done.exit_code == status, done.output
        assert done.exception is None or isinstance(done.exception, SystemExit)
        return done.stdout.strip(), done.stderr.strip()

    def told(self, *arguments):
        """The JSON output of a command of ours."""
        return json.loads(self.ours(*arguments, "--json")[0])

    def serve(self, name, *options, hosts=None, status=0):
        given = ("--hosts", hosts or self.hosts, "--name", name)
        return self.ours("serve", self.model, *given, *options, status=status)

    def served_over(self, name):
        """The hostfile that the settings have for a name."""
        settings = json.loads((self.folder / "mlx" / "data" / "settings.json").read_text())
        return next(one["served"]["hosts"] for one in settings["models"] if one["name"] == name)

    def sockets(self):
        """The sockets at which served models are asked."""
        return set((self.folder / "mlx" / "cache").glob("served-*/socket"))

    def group(self, name):
        """The entry of a served model in `ps`."""
        (found,) = [one for one in self.told("ps")["served"] if one["name"] == name]
        return found

    def told_by_all(self, name):
        """The same, once each rank's beat has told what it holds: there are two a second."""
        self.wait_until(lambda: all(one["held"] for one in self.group(name)["ranks"]))
        return self.group(name)

    def ranks(self, name):
        """The processes of its ranks, by their ranks."""
        return [one["pid"] for one in self.group(name)["ranks"]]

    def processes(self):
        """All processes of ours that live in this home."""
        own = f"LLM_MLX_CACHED_HOME={self.folder / 'mlx'} "
        return [
            pid
            for pid, told in left_hosts.processes()
            if f"-m {MODULE}" in told and own in f"{told} "
        ]

    def wait_for(self, kept):
        """Wait until no process is left but those that are `kept`."""
        self.wait_until(lambda: not set(self.processes()) - set(kept))

    def wait_until(self, happens):
        """Wait for something that other processes do; it says so itself."""
        until = time.monotonic() + LONG
        while not happens():
            assert time.monotonic() < until, self.processes()
            time.sleep(0.02)

    def end(self):
        self.ours("stop")
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
