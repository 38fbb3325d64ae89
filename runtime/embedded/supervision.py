"""Supervisor of one embedded server: starts it, waits for readiness, restarts and stops it."""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from runtime.embedded.private_files import open_log
from runtime.embedded.processes import end_orphans, find_orphans
from runtime.errors import ConfigError, Problem
from runtime.supervised_task import SupervisedTask

# Recovering a large store after a crash may take long; beyond this a person must look.
_READY_TIMEOUT_S = 300.0
_POLL_S = 0.01
_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 10.0
_LOG_BYTES = 10_000_000
_COMPLAINT_BYTES = 20_000


@dataclass(frozen=True, slots=True)
class Launch:
    """The parameters of one start of a server."""

    command: Sequence[str]
    environment: Mapping[str, str]


class EmbeddedProgram(Protocol):
    """The interface of a supervised server.

    Attributes:
        name: file name of the program.
        proof: the argument of its command line that proves that a process serves the host's data.
        log: file of its standard output and error.
        stop_signal: the signal for a clean shutdown.
        stop_timeout_s: how long the shutdown may take before the server is killed.
    """

    name: str
    proof: str
    log: Path
    stop_signal: signal.Signals
    stop_timeout_s: float

    async def prepare(self) -> Launch:
        """Prepare a start; no server runs on the data meanwhile."""

    async def is_ready(self, server: int) -> bool:
        """Whether process `server` is ready."""

    def find_complaint(self, written: str) -> str:
        """The reason of a failed start, from the server's output since; "" when none is found."""

    def is_passing(self, complaint: str) -> bool:
        """Whether the reason goes away by itself within moments."""


class ServerSupervisor:
    """Runs one server until `stop`."""

    def __init__(self, program: EmbeddedProgram) -> None:
        self._program = program
        self._log = structlog.stdlib.get_logger("runtime.embedded").bind(server=program.name)
        self._child: asyncio.subprocess.Process | None = None
        self._ready = False
        self._watch = SupervisedTask(self._restart_when_ended, f"supervision of {program.name}")

    @property
    def pid(self) -> int | None:
        """The server's process id while it is ready."""
        return self._child.pid if self._child and self._ready else None

    async def start(self) -> None:
        """End a killed host's servers, start the server, and return when it is ready.

        Raises:
            ConfigError: the server cannot start; contains the server's reason.
        """
        try:
            await self._start_once()
        except BaseException:
            await self._end_child()
            raise
        self._watch.start()

    async def stop(self) -> None:
        """Shut the server down cleanly and wait for its end. Harmless when it does not run."""
        await self._watch.stop()
        await self._end_child()

    async def end_orphans(self) -> None:
        """End the servers that a killed host left running on the data."""
        program = self._program
        orphans = await asyncio.to_thread(find_orphans, program.name, program.proof)
        if orphans:
            self._log.warning(
                "ending a server that an earlier host left behind", pids=[o.pid for o in orphans]
            )
            await asyncio.to_thread(
                end_orphans, orphans, program.stop_signal, program.stop_timeout_s
            )

    async def _start_once(self) -> None:
        async with asyncio.timeout(_READY_TIMEOUT_S):
            while True:
                await self.end_orphans()
                complaint = await self._launch()
                if complaint is None:
                    return
                if not self._program.is_passing(complaint):
                    break
                await asyncio.sleep(_FIRST_BACKOFF_S)
        raise ConfigError(
            [
                Problem(
                    where=self._program.name,
                    field="",
                    wrong=f"it ended before it was ready: {complaint or 'it gave no reason'}",
                    remedy=f"see {self._program.log}",
                )
            ]
        )

    async def _launch(self) -> str | None:
        """Start the process and wait; return None when it is ready, or the reason why it ended."""
        self._ready = False
        launch = await self._program.prepare()
        path = self._program.log
        if path.exists() and path.stat().st_size > _LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        with os.fdopen(open_log(path), "ab") as log:
            written_before = log.tell()
            # From the loop's thread: the server gets its death signal when this thread ends.
            self._child = await asyncio.create_subprocess_exec(
                *launch.command,
                env=dict(launch.environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        while self._child.returncode is None:
            if await self._program.is_ready(self._child.pid):
                self._ready = True
                self._log.info("the embedded server is ready", pid=self._child.pid)
                return None
            await asyncio.sleep(_POLL_S)
        self._child = None
        with path.open("rb") as log:
            log.seek(max(written_before, path.stat().st_size - _COMPLAINT_BYTES))
            return self._program.find_complaint(log.read().decode(errors="replace"))

    async def _restart_when_ended(self) -> None:
        backoff_s = _FIRST_BACKOFF_S
        while True:
            if self._child is not None:
                code = await self._child.wait()
                self._child = None
                self._log.error("the embedded server ended and is started again", exit_code=code)
            try:
                await self._start_once()
                backoff_s = _FIRST_BACKOFF_S
            except (ConfigError, TimeoutError, OSError) as error:
                self._log.error("the embedded server cannot be started again", reason=str(error))
                await self._end_child()
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)
            except Exception:
                # The next run of this task must not wait for a server that never became ready.
                await self._end_child()
                raise

    async def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is None or child.returncode is not None:
            return
        child.send_signal(self._program.stop_signal)
        # A server that is stopped (SIGSTOP) would not handle the signal.
        child.send_signal(signal.SIGCONT)
        try:
            async with asyncio.timeout(self._program.stop_timeout_s):
                await child.wait()
        except TimeoutError:
            self._log.error("the embedded server did not stop in time and is killed")
            child.kill()
            await child.wait()
