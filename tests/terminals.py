"""What a terminal shows of what was written to it: enough of one for lines that go away."""

import io
import re

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
