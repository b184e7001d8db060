"""An sshd of the tests' own: its keys, its port and its user's, and nothing of this machine's."""

import getpass
import os
import pwd
import re
import shutil
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

LONG = 60


def why_none():
    """The reason why no sshd can be had here; "" where one can."""
    if shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        return "there is no ssh here"
    if program() is None:
        return (
            "there is no sshd here (on Debian: apt install openssh-server), or in LLM_MLX_TEST_SSHD"
        )
    if os.geteuid() == 0 and "LLM_MLX_TEST_SSHD" not in os.environ:
        with suppress(KeyError):
            pwd.getpwnam("sshd")
            return ""
        return "an sshd of root's needs a user sshd"
    return ""


def program():
    """The path of an sshd."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    return os.environ.get("LLM_MLX_TEST_SSHD") or shutil.which("sshd", path=path)


class OwnSshd:
    """An sshd at a port of this machine, and a command for an ssh that knows it as `mac1`."""

    def __init__(self, folder, variables):
        self.folder = folder
        folder.mkdir(mode=0o700)
        for name in ("host_key", "user_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        (folder / "authorized").write_bytes((folder / "user_key.pub").read_bytes())
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        settings = {
            "Port": self.port,
            "ListenAddress": "127.0.0.1",
            "HostKey": folder / "host_key",
            "AuthorizedKeysFile": folder / "authorized",
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "PermitRootLogin": "prohibit-password",
            # What its user has there: another home, as another machine would have.
            "SetEnv": " ".join(f"{name}={value}" for name, value in variables.items()),
        }
        (folder / "sshd_config").write_text("".join(f"{k} {v}\n" for k, v in settings.items()))
        self._made = self._empty_folder()
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [program(), "-D", "-e", "-f", str(folder / "sshd_config")],
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        self._await()
        self._write_known_hosts()

    def client(self):
        """The text of an `ssh` that knows where `mac1` is, as the user's own config would."""
        config = self.folder / "config"
        config.write_text(
            f"Host mac1\n  HostName 127.0.0.1\n  Port {self.port}\n  User {getpass.getuser()}\n"
            f"  IdentityFile {self.folder / 'user_key'}\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {self.folder / 'known_hosts'}\n"
        )
        return f'#!/bin/sh\nexec {shutil.which("ssh")} -F {config} "$@"\n'

    def end(self):
        self.process.terminate()
        self.process.wait(LONG)
        if self._made is not None:
            self._made.rmdir()

    def _empty_folder(self):
        """The folder that root's sshd wants empty, made as the system's service makes it; or None.

        Where that service has never run, it is missing.
        """
        command = [program(), "-t", "-f", str(self.folder / "sshd_config")]
        told = subprocess.run(command, capture_output=True, text=True).stderr
        if found := re.search(r"Missing privilege separation directory: (\S+)", told):
            made = Path(found[1])
            made.mkdir(mode=0o755)
            return made
        return None

    def _await(self):
        until = time.monotonic() + LONG
        while True:
            with suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.02)

    def _write_known_hosts(self):
        kind, key, *_ = (self.folder / "host_key.pub").read_text().split()
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {kind} {key}\n")
