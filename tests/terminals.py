"""A terminal's view of what was written to it: enough of one for lines that go away."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import termios
from contextlib import suppress

_STEP = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


class Terminal(io.StringIO):
    """A stream that says that it is one."""

    def isatty(self):
        return True


def screens(written):
    """The lines on the screen after each piece of text that was written, and at the end."""
    lines, row, column = [""], 0, 0
    for arguments, command, control, text in _STEP.findall(written):
        if control == "\r":
            column = 0
        elif control == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif command == "A":
            row -= int(arguments or 1)
        elif command == "K":
            lines[row] = "" if arguments == "2" else lines[row][:column]
        elif text:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
            column += len(text)
            yield [line for line in lines if line]
        else:
            assert command in "mhl", (arguments, command)  # colours, and the cursor shown or not
    yield [line for line in lines if line]


def on_a_terminal(command, environment, *, columns=80, typed="", behind=""):
    """Run a command whose streams are a terminal of this width: its status, and what it wrote.

    Ends of lines are as a pipe has them. What is typed, once the command has written `behind`, is
    not echoed.
    """
    leader, follower = pty.openpty()
    mode = termios.tcgetattr(follower)
    mode[3] &= ~termios.ECHO
    termios.tcsetattr(follower, termios.TCSANOW, mode)
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {**environment, "TERM": "xterm", "COLUMNS": str(columns)}
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), follower)
    with subprocess.Popen(command, env=environment, **streams) as process:
        os.close(follower)
        waiting, written = typed.encode(), b""
        with suppress(OSError):  # what Linux says where the other end is closed
            while True:
                if waiting and behind.encode() in written:
                    os.write(leader, waiting)
                    waiting = b""
                if not (block := os.read(leader, 1 << 16)):
                    break
                written += block
    os.close(leader)
    return process.returncode, written.decode().replace("\r\n", "\n")
