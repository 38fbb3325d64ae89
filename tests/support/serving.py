"""Runs `runtime serve` in a process of its own, and reads its output."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

RUNTIME = Path(sys.executable).parent / "runtime"
DEADLINE_S = 120.0


class Served:
    """A serving process; a task reads its output, so that it never blocks on a full pipe."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._changed = asyncio.Event()
        self._reading = [
            asyncio.create_task(self._read(stream))
            for stream in (process.stdout, process.stderr)
            if stream is not None
        ]

    @property
    def text(self) -> str:
        """The output so far."""
        return "\n".join(self.lines)

    async def wait_for_line(self, event: str, count: int = 1, **fields: Any) -> dict[str, Any]:
        """The count-th log entry with this sentence and these fields."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                found = [
                    entry
                    for entry in map(_entry, self.lines)
                    if entry.get("event") == event and fields.items() <= entry.items()
                ]
                if len(found) >= count:
                    return found[count - 1]
                if all(task.done() for task in self._reading):
                    raise AssertionError(f"it ended without saying {event!r}:\n{self.text}")
                self._changed.clear()
                await self._changed.wait()

    async def wait_until_ended(self, timeout_s: float = DEADLINE_S) -> int:
        """The exit code, when the process and all holders of its output have ended."""
        try:
            async with asyncio.timeout(timeout_s):
                code = await self.process.wait()
                await asyncio.gather(*self._reading)
        except TimeoutError:
            raise AssertionError(f"it did not end within {timeout_s:g} s:\n{self.text}") from None
        return code

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def _read(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            self.lines.append(line.decode().rstrip("\n"))
            self._changed.set()
        await asyncio.sleep(0)  # The task is done only after this turn.
        asyncio.get_running_loop().call_soon(self._changed.set)


def _entry(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


@asynccontextmanager
async def serving(folder: Path, *arguments: str, **environment: str) -> AsyncIterator[Served]:
    """Run `runtime serve app.yaml` in `folder`, or with other arguments; ended at the exit."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    process = await asyncio.create_subprocess_exec(
        RUNTIME,
        "serve",
        *(arguments or ("app.yaml",)),
        cwd=folder,
        env={**kept, "RUNTIME_ADMIN_PORT": "0", "RUNTIME_LOG_FORMAT": "json", **environment},
        stdout=PIPE,
        stderr=PIPE,
    )
    served = Served(process)
    try:
        yield served
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 20)
            except TimeoutError:
                process.kill()
                await process.wait()
        for task in served._reading:
            task.cancel()
        await asyncio.gather(*served._reading, return_exceptions=True)
