"""Reads single keys from a terminal inside an event loop."""

import asyncio
import os
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_SEQUENCES: Final = {
    b"\x1b[A": "up",
    b"\x1b[B": "down",
    b"\x1bOA": "up",
    b"\x1bOB": "down",
    b"\x1b[5~": "page up",
    b"\x1b[6~": "page down",
    b"\x1b[H": "home",
}
END: Final = "end of input"


@contextmanager
def keys_pressed(descriptor: int, act: Callable[[str], None]) -> Iterator[None]:
    """Call `act` with each key until the exit, which restores the terminal.

    Keys are not echoed. Ctrl-C stays a signal.
    """
    before = termios.tcgetattr(descriptor)
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            data = os.read(descriptor, 256)
        except OSError:
            data = b""
        if not data:
            loop.remove_reader(descriptor)
        for key in decode(data) if data else [END]:
            act(key)

    tty.setcbreak(descriptor, termios.TCSANOW)
    loop.add_reader(descriptor, read)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


def decode(data: bytes) -> Iterator[str]:
    """The keys in what a terminal sent; an unknown control sequence is no key."""
    while data:
        for sequence, key in _SEQUENCES.items():
            if data.startswith(sequence):
                yield key
                data = data[len(sequence) :]
                break
        else:
            if data.startswith((b"\x1b[", b"\x1bO")):
                return
            yield data[:1].decode("latin-1")
            data = data[1:]
