"""Runs commands in bash, until they end or show what is waited for."""

import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from tools.seeds.places import Places

_DEADLINE_S = 60.0
_GRACE_S = 5.0
_REPEAT_S = 2.0
_PAUSE_S = 0.1
_LISTENING = re.compile("Subscribing on")


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command printed, errors included, and its exit code; None when it was ended."""

    code: int | None
    output: str

    def shows(self, pattern: str) -> bool:
        """Whether the pattern is in the output."""
        return re.search(pattern, self.output) is not None


class Shell:
    """A bash whose addresses are those of one server under test."""

    def __init__(self, places: Places) -> None:
        self._places = places

    def run(self, command: str) -> Ran:
        """Run a command to its end, or for a minute."""
        with self._started(command) as process:
            output = _read_until(process, None)
            return Ran(process.poll(), output)

    def run_until(self, command: str, shows: str) -> Ran:
        """Run a command again until it shows something, for a minute at most."""
        until = time.monotonic() + _DEADLINE_S
        while not (ran := self.run(command)).shows(shows) and time.monotonic() < until:
            time.sleep(_PAUSE_S)
        return ran

    def listen(self, command: str, shows: str, publish: str = "") -> Ran:
        """Run a command that does not end, until it shows something.

        Args:
            command: the command.
            shows: what to wait for.
            publish: a command to run once the first one says that it subscribes. It is repeated,
                since the subscription follows a moment later.
        """
        until = time.monotonic() + _DEADLINE_S
        with self._started(command) as process:
            output = _read_until(process, _LISTENING if publish else re.compile(shows))
            while publish and time.monotonic() < until and not re.search(shows, output):
                if process.poll() is not None:
                    break
                self.run(publish)
                output += _read_until(process, re.compile(shows), _REPEAT_S)
            return Ran(process.poll(), output)

    @contextmanager
    def _started(self, command: str) -> Iterator["subprocess.Popen[bytes]"]:
        process = subprocess.Popen(
            ["bash", "-c", self._places.translate(command)],  # noqa: S607 - found on the path
            cwd=self._places.folder,
            env=self._places.variables(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _end(process)
            if process.stdout is not None:
                process.stdout.close()


def _end(process: "subprocess.Popen[bytes]") -> None:
    # The whole group, which this process started: `watch` has children of its own.
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)


def _read_until(
    process: "subprocess.Popen[bytes]",
    pattern: re.Pattern[str] | None,
    timeout_s: float = _DEADLINE_S,
) -> str:
    """The output up to its end, or until it has the pattern, or for some time."""
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    output = b""
    until = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left_s := until - time.monotonic()) > 0:
            if not selector.select(left_s):
                break
            chunk = os.read(process.stdout.fileno(), 65_536)
            if not chunk:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_GRACE_S)
                break
            output += chunk
            if pattern is not None and pattern.search(output.decode(errors="replace")):
                break
    return output.decode(errors="replace")
