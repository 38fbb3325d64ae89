"""Runs the command line in a process of its own, against a test's server."""

import asyncio
import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import command_server

ROOT = Path(__file__).parents[2]
RUNTIME = Path(sys.executable).parent / "runtime"

SKEWED = (sys.executable, "-m", "tests.fault.skewed")
"""The program by a clock that is ahead by the seconds in the file that CLOCK_FILE names."""

_DEADLINE_S = 120.0


@dataclass(frozen=True, slots=True)
class Done:
    """The exit code and the output of a command."""

    code: int
    data: bytes
    err: str

    @property
    def out(self) -> str:
        return self.data.decode("utf-8")

    @property
    def rows(self) -> list[list[str]]:
        """The words of each line."""
        return [line.split() for line in self.out.splitlines()]

    @property
    def documents(self) -> list[dict[str, Any]]:
        """Each line as JSON."""
        return [json.loads(line) for line in self.out.splitlines()]


async def runtime(
    url: str,
    *arguments: object,
    stdin: str = "",
    folder: Path = ROOT,
    program: Sequence[str | Path] = (RUNTIME,),
    **environment: str,
) -> Done:
    """Run `runtime ARGUMENTS` with this server in its environment."""
    command = [*map(str, program), *map(str, arguments)]
    whole = {"PATH": os.defpath, "HOME": "/nonexistent", "NATS_URL": url, **environment}
    if program == (RUNTIME,):
        return await asyncio.to_thread(_forks().run, command, stdin, folder, whole)
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env=whole,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_DEADLINE_S):
            out, err = await process.communicate(stdin.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Done(process.returncode or 0, out, err.decode("utf-8"))


class _Forks:
    """Runs commands by `command_server`, which lives as long as this process."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="runtime-test-")
        self._path = str(Path(self._folder.name) / "commands")
        theirs, self._ours = os.pipe()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self._path)
            listener.listen()
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    command_server.__file__,
                    str(listener.fileno()),
                    str(theirs),
                ],
                pass_fds=(listener.fileno(), theirs),
                env={"PATH": os.defpath, "HOME": "/nonexistent"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        os.close(theirs)
        atexit.register(self._stop)

    def run(
        self, command: list[str], stdin: str, folder: Path, environment: Mapping[str, str]
    ) -> Done:
        with (
            tempfile.TemporaryFile() as given,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
            socket.socket(socket.AF_UNIX) as connection,
        ):
            given.write(stdin.encode())
            given.seek(0)
            connection.connect(self._path)
            request = {"command": command, "folder": str(folder), "environment": environment}
            streams = [given.fileno(), out.fileno(), err.fileno()]
            socket.send_fds(connection, [json.dumps(request).encode() + b"\n"], streams)
            with connection.makefile() as answer:
                pid = int(answer.readline())
                connection.settimeout(_DEADLINE_S)
                try:
                    code = int(answer.readline())
                except TimeoutError:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                    raise
            out.seek(0)
            err.seek(0)
            return Done(code, out.read(), err.read().decode("utf-8"))

    def _stop(self) -> None:
        os.close(self._ours)
        self._process.wait()
        self._folder.cleanup()


@functools.cache
def _forks() -> _Forks:
    return _Forks()
