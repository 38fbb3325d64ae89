"""Socket pair between supervisor and worker that orders a drain and detects a peer's death.

The worker's end is its standard input. The worker sends one byte when all its callers of endpoints
have ended. The supervisor answers with one byte when that is so in every worker: then the endpoints
may end. When one of the two processes dies, the other reads the end of the stream.
"""

import asyncio
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

OVERDUE_S = 5.0
"""How long a worker whose supervisor died may run after its grace period."""
_CALLERS_ENDED = b"c"
_ENDPOINTS_MAY_END = b"e"


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
        self._loop = asyncio.get_running_loop()
        self._descriptor = sys.stdin.fileno()
        threading.Thread(target=self._watch, name="supervisor watch", daemon=True).start()

    async def wait_for_callers(self) -> None:
        """Report that this worker's callers have ended; return when all workers' have."""
        try:
            os.write(self._descriptor, _CALLERS_ENDED)
        except OSError:
            return  # There is no supervisor to wait for.
        await self._released.wait()

    def _watch(self) -> None:
        try:
            # Not through `sys.stdin`: its lock, held by a daemon thread, crashes the interpreter's
            # shutdown.
            while os.read(self._descriptor, 1):
                self._loop.call_soon_threadsafe(self._released.set)
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
    """

    def __init__(self, is_draining: Callable[[], bool]) -> None:
        self._is_draining = is_draining
        self._own, self.standard_input = socket.socketpair()
        self._writer: asyncio.StreamWriter | None = None
        self._listening: asyncio.Task[None] | None = None
        self.callers_ended = asyncio.Event()

    async def open(self) -> None:
        """Start to listen; called after the process has inherited its end."""
        self.standard_input.close()
        reader, self._writer = await asyncio.open_unix_connection(sock=self._own)
        self._listening = asyncio.create_task(self._listen(reader), name="worker link")

    def let_endpoints_end(self) -> None:
        """Tell the worker that all callers of endpoints have ended."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(_ENDPOINTS_MAY_END)

    async def close(self) -> None:
        """Close the channel of a process that has ended."""
        self.callers_ended.set()
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
            await reader.read(1)
        self.callers_ended.set()
        if not self._is_draining():
            self.let_endpoints_end()
