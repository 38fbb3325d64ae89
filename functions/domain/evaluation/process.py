"""The host's side of the process that evaluates expressions."""

import asyncio
import contextlib
import json
import marshal
import os
import signal
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

Record: TypeAlias = tuple[str, tuple[Any, ...], int, str, str, float]

_SILENT_S = 30.0
"""Processor time is what bounds an ask; this is for a process that does not run at all."""
_IDLE_S = 60.0
_READ_BYTES = 65_536
_LENGTH = struct.Struct("!I")
_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from functions.domain.evaluation.worker import main; main()"
)
# Neither the host's secrets nor what steers its interpreter.
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH")


class Replied(NamedTuple):
    """The records of a request, in order.

    Attributes:
        stopped: the ask after them was stopped, and those after it were not evaluated.
    """

    records: list[Record]
    stopped: bool


class ProcessGone(Exception):  # noqa: N818 - names what happened
    """The process could not be started, or has ended before all records came.

    Attributes:
        records: those that came.
    """

    def __init__(self, reason: str, records: list[Record] | None = None) -> None:
        self.records = records or []
        super().__init__(reason)


class ExpressionProcess:
    """A process that is started for the first request, and ends when it is idle for a minute.

    Args:
        stop_s: processor time at which an ask is stopped.
    """

    def __init__(self, stop_s: float) -> None:
        self._stop_s = stop_s
        self._process: asyncio.subprocess.Process | None = None

    async def run(self, request: object, asks: int) -> Replied:
        """Evaluate a request of so many asks. One at a time.

        Raises:
            ProcessGone: the process could not be started, ended or is silent; the next request
                starts another one.
        """
        records: list[Record] = []
        try:
            process = await self._started()
            assert process.stdin is not None  # noqa: S101 - it is a pipe
            data = marshal.dumps(request)  # type: ignore[arg-type] # of its types alone
            process.stdin.write(_LENGTH.pack(len(data)) + data)
            async with asyncio.timeout(_SILENT_S):
                await process.stdin.drain()
            return await self._read(process, records, asks)
        except (OSError, EOFError, TimeoutError) as failure:
            code = await self.stop()
            reason = f"{type(failure).__name__}, exit code {code}"
            raise ProcessGone(reason, records) from failure
        except asyncio.CancelledError:
            # The rest of the reply would be taken for that of the next request.
            await self.stop()
            raise

    async def stop(self) -> int | None:
        """End the process. Returns its exit code; None if there was none."""
        process, self._process = self._process, None
        if process is None:
            return None
        # The id of a process that has ended may be another one's by now.
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if process.stdin is not None:
            process.stdin.close()
        return await process.wait()

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        await self.stop()
        arguments = (_paths(), str(self._stop_s), str(_IDLE_S))
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _CODE, *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=_environment(os.environ),
            # A group of its own, which `stop` ends as a whole, and which Ctrl-C does not reach.
            start_new_session=True,
        )
        return self._process

    async def _read(
        self, process: asyncio.subprocess.Process, records: list[Record], asks: int
    ) -> Replied:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        buffer = b""
        while len(records) < asks:
            async with asyncio.timeout(_SILENT_S):
                data = await process.stdout.read(_READ_BYTES)
            if not data:
                raise EOFError
            buffer += data
            begin = 0
            while len(buffer) - begin >= _LENGTH.size:
                end = begin + _LENGTH.size + _LENGTH.unpack_from(buffer, begin)[0]
                if end > len(buffer):
                    break
                record = marshal.loads(buffer[begin + _LENGTH.size : end])  # noqa: S302 - our own
                begin = end
                if record is None:
                    return Replied(records, stopped=True)
                records.append(record)
            buffer = buffer[begin:]
        return Replied(records, stopped=False)


def _paths() -> str:
    """Where this interpreter finds modules: the process imports the same."""
    here = str(Path.cwd())
    return json.dumps([path or here for path in sys.path])


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: environment[name] for name in _PASSED_ON if name in environment}


__all__ = ["ExpressionProcess", "ProcessGone", "Record", "Replied"]
