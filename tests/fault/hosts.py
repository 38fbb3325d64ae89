"""Hosts as processes of their own, to be killed."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import httpx

READY_S = 60.0


class HostProcess:
    """`runtime serve` on given servers, started again under the same name after each kill."""

    def __init__(
        self, name: str, manifests: list[Path], environment: Mapping[str, str], directory: Path
    ) -> None:
        self.name = name
        self._command = [sys.executable, "-m", "runtime", "serve", *map(str, manifests)]
        self._environment = {
            **{key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ},
            "RUNTIME_ADMIN_PORT": "0",
            "GATEWAY_PORT": "0",
            "RUNTIME_DATA_DIR": str(directory / name),
            "RUNTIME_LOG_FORMAT": "json",
            **environment,
        }
        self.log = directory / f"{name}.log"
        self._process: asyncio.subprocess.Process | None = None
        self.kills = 0

    async def start(self) -> None:
        """Start; returns when the process runs, not when it is ready."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, env=self._environment, stdout=log, stderr=log
            )

    async def kill(self) -> None:
        """SIGKILL, in the middle of whatever it does."""
        assert self._process is not None, "the host was not started"
        assert self._process.returncode is None, self.log.read_text()[-4000:]
        self._process.send_signal(signal.SIGKILL)
        await self._process.wait()
        self.kills += 1

    async def stop(self) -> int:
        """SIGTERM, then wait for the drain; the exit code."""
        if self._process is None:
            return 0
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        return await self._process.wait()


async def is_ready(port: int) -> bool:
    """Whether the admin door says so."""
    async with httpx.AsyncClient() as client:
        try:
            answer = await client.get(f"http://127.0.0.1:{port}/readyz")
        except httpx.TransportError:
            return False
    return answer.status_code == httpx.codes.OK


async def until(condition: Callable[[], Awaitable[bool]], what: str, timeout_s: float) -> None:
    """Return when `condition` holds."""
    async with asyncio.timeout(timeout_s) as limit:
        try:
            while not await condition():  # noqa: ASYNC110 - what it asks sends no events
                await asyncio.sleep(0.1)
        except TimeoutError:
            if limit.expired():
                raise TimeoutError(f"{what} did not come within {timeout_s:g} s") from None
            raise
