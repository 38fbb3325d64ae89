"""A pseudo-terminal, and what a person sees on it."""

import fcntl
import os
import pty
import re
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_ESCAPE = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07\x1b]*(?:\x07|\x1b\\))")


def visible(text: str) -> str:
    """The text without what a terminal obeys: colours, links, movements of the cursor."""
    return _ESCAPE.sub("", text).replace("\r\n", "\n")


@contextmanager
def open_terminal(columns: int, rows: int = 40) -> Iterator[tuple[int, TextIO]]:
    """The side of the person, as a descriptor, and that of the program."""
    person, program = pty.openpty()
    fcntl.ioctl(program, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with os.fdopen(program, "w", encoding="utf-8", buffering=1) as stream:
        try:
            yield person, stream
        finally:
            os.close(person)
