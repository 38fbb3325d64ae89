"""Hosts in processes of their own, which tests kill and stop."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from tests.support.host import eventually


class HostProcess:
    """`runtime serve` on given servers, which may be started again after each kill.

    Args:
        name: name of the log and of the data directory.
        arguments: arguments of `runtime serve`.
        environment: addresses of the servers.
        directory: folder for the log and the data directory.
        module: the module to run in place of `runtime`.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str | Path],
        environment: Mapping[str, str],
        directory: Path,
        *,
        module: str = "runtime",
    ) -> None:
        self.name = name
        self._command = [sys.executable, "-m", module, "serve", *map(str, arguments)]
        self._environment = {
            **{key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ},
            "RUNTIME_ADMIN_PORT": "0",
            "GATEWAY_PORT": "0",
            "RUNTIME_DATA_DIR": str(directory / name),
            "RUNTIME_LOG_FORMAT": "json",
            **environment,
        }
        self._log = directory / f"{name}.log"
        self._process: asyncio.subprocess.Process | None = None
        self.kills = 0

    @property
    def log(self) -> str:
        """The log since the first start."""
        return self._log.read_text(encoding="utf-8")

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None, "the host was not started"
        return self._process.pid

    @property
    def workers(self) -> list[psutil.Process]:
        """The supervisor's worker processes, the oldest first."""
        assert self._process is not None, "the host was not started"
        children = psutil.Process(self._process.pid).children()
        return [child for child in children if "--worker-place" in child.cmdline()]

    async def start(self) -> None:
        """Start; returns when the process runs, not when it is ready."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, env=self._environment, stdout=log, stderr=log
            )

    async def wait_until_ready(self) -> None:
        """Return when the log, since the first start, says that the host is ready."""

        async def look() -> bool:
            process = self._process
            assert process is None or process.returncode is None, self.log[-4000:]
            # A line of a worker names the worker.
            ready = [line for line in self.log.splitlines() if '"event":"Ready"' in line]
            return any('"worker"' not in line for line in ready)

        await eventually(look, f"a ready host {self.name}", 60)

    async def kill(self) -> None:
        """Send SIGKILL."""
        process = self._send(signal.SIGKILL)
        await process.wait()
        self.kills += 1

    async def died(self) -> None:
        """Return when the process has ended by itself."""
        assert self._process is not None, "the host was not started"
        async with asyncio.timeout(60):
            await self._process.wait()

    def pause(self) -> None:
        """Send SIGSTOP: connections stay open, and the process answers nothing."""
        os.waitid(os.P_PID, self._send(signal.SIGSTOP).pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        self._send(signal.SIGCONT)

    async def stop(self) -> None:
        """Stop the host with SIGTERM, even if it is paused; do nothing when it does not run."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            for worker in self.workers:
                worker.resume()
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)
        await process.wait()

    def _send(self, number: signal.Signals) -> asyncio.subprocess.Process:
        assert self._process is not None, "the host was not started"
        assert self._process.returncode is None, self.log[-4000:]
        self._process.send_signal(number)
        return self._process


@asynccontextmanager
async def two_hosts(
    nats_url: str, dsn: str, manifests: Sequence[str | Path], folder: Path, **environment: str
) -> AsyncIterator[list[HostProcess]]:
    """Two hosts on the same servers, not started yet; ended in the end."""
    variables = {
        "NATS_URL": nats_url,
        "DATABASE_URL": dsn,
        "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
        **environment,
    }
    both = [HostProcess(name, manifests, variables, folder) for name in ("one", "two")]
    try:
        yield both
    finally:
        for host in both:
            await host.stop()
