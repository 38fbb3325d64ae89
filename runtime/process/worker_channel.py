"""Socket pair between supervisor and worker: orders a drain, asks for reloads, detects a death.

The worker's end is its standard input. Each message is a line: its first letter says what it is.

    c           worker: all its callers of endpoints have ended
    d JSON      worker: the data files that its modules read while they were imported or started
    e           supervisor: that is so in every worker, so the endpoints may end
    r NUMBER    supervisor: reload what is on disk
    r JSON      worker: the changes that the reload of that number made

When one of the two processes dies, the other reads the end of the stream.
"""

import asyncio
import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from runtime.deployments.function_change import FunctionChange

OVERDUE_S = 5.0
"""How long a worker whose supervisor died may run after its grace period."""
LONGEST_LINE_BYTES = 16_000_000
_CALLERS_ENDED = b"c\n"
_ENDPOINTS_MAY_END = b"e\n"


class SupervisorLink:
    """The worker's end of the channel.

    A thread reads the channel, so that a worker with a blocked loop does not outlive its supervisor
    for ever: the thread ends the process after the grace period.

    Args:
        drain: event that is set when the supervisor has ended.
        grace_s: time limit of a drain.
    """

    def __init__(self, drain: asyncio.Event, grace_s: float) -> None:
        self._drain = drain
        self._grace_s = grace_s
        self._released = asyncio.Event()
        self._reload: Callable[[int], None] | None = None
        self._asked_for = 0
        self._loop = asyncio.get_running_loop()
        self._descriptor = sys.stdin.fileno()
        threading.Thread(target=self._watch, name="supervisor watch", daemon=True).start()

    async def wait_for_callers(self) -> None:
        """Report that this worker's callers have ended; return when all workers' have."""
        if self._send(_CALLERS_ENDED):  # Else there is no supervisor to wait for.
            await self._released.wait()

    def on_reload(self, reload: Callable[[int], None]) -> None:
        """Call `reload` with the number of each reload that the supervisor asks for.

        One that it has asked for before, while this process started, is asked for at once: the
        files may have changed since this process has read them.
        """
        self._reload = reload
        if self._asked_for:
            reload(self._asked_for)

    def tell_data_files(self, files: Iterable[Path]) -> None:
        """Tell which data files this worker's modules have read."""
        self._send(b"d %s\n" % json.dumps([str(file) for file in files]).encode())

    def report(self, number: int, changes: Iterable[FunctionChange]) -> None:
        """Report what the reload of this number changed."""
        content = {"number": number, "changes": [change.as_dict() for change in changes]}
        self._send(b"r %s\n" % json.dumps(content).encode())

    def _send(self, line: bytes) -> bool:
        """Send a line; return False when the supervisor has ended."""
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        except OSError:
            return False
        return True

    def _receive(self, line: bytes) -> None:
        if line == _ENDPOINTS_MAY_END.strip():
            self._released.set()
            return
        self._asked_for = int(line.removeprefix(b"r "))
        if self._reload is not None:
            self._reload(self._asked_for)

    def _watch(self) -> None:
        received = b""
        try:
            # Not through `sys.stdin`: its lock, held by a daemon thread, crashes the interpreter's
            # shutdown.
            while data := os.read(self._descriptor, 4096):
                *lines, received = (received + data).split(b"\n")
                for line in lines:
                    self._loop.call_soon_threadsafe(self._receive, line)
        except OSError:
            pass  # A reset connection has ended too.
        except RuntimeError:
            return  # The loop is closed.
        try:
            self._loop.call_soon_threadsafe(self._drain.set)
            self._loop.call_soon_threadsafe(self._released.set)
        except RuntimeError:
            return
        time.sleep(self._grace_s + OVERDUE_S)
        os._exit(1)


class WorkerLink:
    """The supervisor's end of the channel to one worker.

    Args:
        is_draining: whether the supervisor waits for the callers of all workers; while it does not,
            a worker that ends by itself need not wait for the others.

    Attributes:
        data_files: the data files that the worker's modules have read.
    """

    def __init__(self, is_draining: Callable[[], bool]) -> None:
        self._is_draining = is_draining
        self._own, self.standard_input = socket.socketpair()
        self._writer: asyncio.StreamWriter | None = None
        self._listening: asyncio.Task[None] | None = None
        self._reloads: dict[int, asyncio.Future[list[FunctionChange]]] = {}
        self.callers_ended = asyncio.Event()
        self.data_files: frozenset[Path] = frozenset()

    async def open(self) -> None:
        """Start to listen; called after the process has inherited its end."""
        self.standard_input.close()
        reader, self._writer = await asyncio.open_unix_connection(
            sock=self._own, limit=LONGEST_LINE_BYTES
        )
        self._listening = asyncio.create_task(self._listen(reader), name="worker link")

    def let_endpoints_end(self) -> None:
        """Tell the worker that all callers of endpoints have ended."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(_ENDPOINTS_MAY_END)

    async def reload(self, number: int) -> list[FunctionChange]:
        """Let the worker reload what is on disk, and return what that changed.

        Returns:
            The changes; none when the process ends meanwhile, or has not begun: the next one reads
            what is on disk.
        """
        if self._writer is None or self._writer.is_closing():
            return []
        future: asyncio.Future[list[FunctionChange]] = asyncio.get_running_loop().create_future()
        self._reloads[number] = future
        self._writer.write(b"r %d\n" % number)
        try:
            return await future
        finally:
            self._reloads.pop(number, None)

    async def close(self) -> None:
        """Close the channel of a process that has ended."""
        self._end()
        self.standard_input.close()
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        if self._writer is None:
            self._own.close()
        else:
            self._writer.close()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):  # A reset connection has ended too.
            while line := await reader.readline():
                self._receive(line)
        self._end()

    def _receive(self, line: bytes) -> None:
        if line.startswith(b"d "):
            self.data_files = frozenset(map(Path, json.loads(line.removeprefix(b"d "))))
            return
        if line != _CALLERS_ENDED:
            report = json.loads(line.removeprefix(b"r "))
            waiting = self._reloads.get(report["number"])
            if waiting is not None and not waiting.done():
                waiting.set_result([FunctionChange.from_dict(each) for each in report["changes"]])
            return
        self.callers_ended.set()
        if not self._is_draining():
            self.let_endpoints_end()

    def _end(self) -> None:
        """Nothing more will come."""
        self.callers_ended.set()
        for waiting in self._reloads.values():
            if not waiting.done():
                waiting.set_result([])
