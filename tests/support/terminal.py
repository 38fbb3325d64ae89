"""Runs a program on a pseudo-terminal, and reads what the terminal shows."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.cells import cell_len

_ERASE = "\r\x1b[K"
_ESCAPE = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07\x1b]*(?:\x07|\x1b\\))")
_HOME = "\x1b[H"
_DEADLINE_S = 120.0
_TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    " os.execv(sys.argv[1], sys.argv[1:])"
)
"""Makes the terminal the program's own, so that Ctrl-C is a signal for it."""


def visible(text: str) -> str:
    """The text without control sequences: colours, links, and lines that were erased."""
    lines = text.replace("\r\n", "\n").split("\n")
    plain = _ESCAPE.sub("", "\n".join(line.rpartition(_ERASE)[2] for line in lines))
    return "\n".join(line.rstrip() for line in plain.split("\n"))


def _squeezed(text: str) -> str:
    return " ".join(re.sub(r"\d+", "0", text).split())


def widest(text: str) -> int:
    """The width of the longest line, erased lines included."""
    shown = _ESCAPE.sub("", text.replace(_ERASE, "\n").replace("\r\n", "\n"))
    return max(map(cell_len, shown.split("\n")))


@contextmanager
def open_terminal(columns: int, rows: int = 40) -> Iterator[tuple[int, TextIO]]:
    """The terminal's two descriptors: the user's side and the program's side."""
    person, program = pty.openpty()
    fcntl.ioctl(program, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with os.fdopen(program, "w", encoding="utf-8", buffering=1) as stream:
        try:
            yield person, stream
        finally:
            os.close(person)


class OnTerminal:
    """A program on a terminal of its own; a thread reads its output."""

    def __init__(self, process: "subprocess.Popen[bytes]", person: int) -> None:
        self.process = process
        self._person = person
        self._read = b""
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._follow, daemon=True)
        self._reader.start()

    @property
    def raw(self) -> str:
        """The program's output, with control sequences."""
        return self._read.decode("utf-8", errors="replace")

    @property
    def lines(self) -> list[str]:
        """The terminal's lines, scrolled ones included."""
        return visible(self.raw).rstrip("\n").split("\n")

    def wait_for(self, pattern: str, *, in_last_screen: bool = False) -> re.Match[str]:
        """Return when the terminal shows this text.

        Args:
            pattern: a regular expression.
            in_last_screen: look only at what was drawn since the cursor was last at the top left.
        """
        until_s = time.monotonic() + _DEADLINE_S
        with self._changed:
            while not (found := re.search(pattern, self._text(in_last_screen), re.MULTILINE)):
                left_s = until_s - time.monotonic()
                assert left_s > 0, f"{pattern!r} did not show:\n" + "\n".join(self.lines)
                self._changed.wait(left_s)
        return found

    def _text(self, in_last_screen: bool) -> str:
        if not in_last_screen:
            return "\n".join(self.lines)
        return visible(self.raw.rpartition(_HOME)[2])

    def press(self, keys: str) -> None:
        """Write what the terminal sends for these keys."""
        os.write(self._person, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        """Change the size of the terminal, of which its programs are told."""
        fcntl.ioctl(self._person, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def wait_for_words(self, words: str, *, after: int = 0) -> int:
        """Return when the terminal shows these words, however it wraps and aligns them.

        Numbers may differ, and … is any text. Only what comes after the position `after` counts;
        returns the position behind.
        """
        parts = [_squeezed(part) for part in words.split("…")]
        until_s = time.monotonic() + _DEADLINE_S
        with self._changed:
            while True:
                shown, at = _squeezed("\n".join(self.lines)), after
                for part in parts:
                    found = shown.find(part, at)
                    at = found + len(part) if found >= 0 <= at else -1
                if at >= 0:
                    return at
                left_s = until_s - time.monotonic()
                assert left_s > 0, f"{words!r} did not show:\n" + "\n".join(self.lines)
                self._changed.wait(left_s)

    def press_ctrl_c(self) -> None:
        """Write the character of Ctrl-C, which the terminal turns into a signal."""
        os.write(self._person, b"\x03")

    def wait_until_ended(self) -> int:
        """The exit code."""
        code = self.process.wait(_DEADLINE_S)
        self._reader.join(_DEADLINE_S)
        return code

    def _follow(self) -> None:
        while True:
            try:
                more = os.read(self._person, 65536)
            except OSError:
                more = b""  # The terminal ends with the last program on it.
            with self._changed:
                self._read += more
                self._changed.notify_all()
            if not more:
                return


@contextmanager
def on_terminal(
    command: Sequence[str | Path], *, columns: int, folder: Path, environment: Mapping[str, str]
) -> Iterator[OnTerminal]:
    """Run a program on a terminal of this width; ended at the exit."""
    with open_terminal(columns) as (person, program):
        process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL, *command],
            cwd=folder,
            env={"PATH": os.defpath, "HOME": "/nonexistent", "TERM": "xterm", **environment},
            stdin=program,
            stdout=program,
            stderr=program,
            start_new_session=True,
        )
        program.close()
        shown = OnTerminal(process, person)
        try:
            yield shown
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
