"""Distinguishes an outage of a server from a function's own failure, and waits for its end."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType

import asyncpg

from runtime.errors import NoAnswer, Unavailable
from runtime.observe.logs import get_logger
from runtime.resource.postgres import outage

log = get_logger("runtime.outages")

FIRST_PAUSE_S = 0.25
PAUSE_CAP_S = 5.0
PROBE_LIMIT_S = 3.0

Probe = Callable[[], Awaitable[object]]


def is_outage(failure: BaseException) -> bool:
    """Whether `failure` means that NATS or PostgreSQL is unavailable, so no message is the cause.

    A refused or broken connection counts when the PostgreSQL driver raised it; the same error of
    another connection of a function is the function's failure.
    """
    if isinstance(failure, Unavailable):
        return not isinstance(failure, NoAnswer)
    if isinstance(
        failure, asyncpg.PostgresError | asyncpg.InterfaceError | asyncpg.InternalClientError
    ):
        return outage(failure) is not None
    return isinstance(failure, OSError) and _raised_by_driver(failure.__traceback__)


def _raised_by_driver(trace: TracebackType | None) -> bool:
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").startswith("asyncpg."):
            return True
        trace = trace.tb_next
    return False


class Outages:
    """One probe task for all functions of a process.

    However many messages wait, each probe runs once a turn.
    """

    def __init__(self, probes: Mapping[str, Probe]) -> None:
        self._probes = probes
        self._watch: asyncio.Task[bool] | None = None

    async def wait_until_over(self) -> bool:
        """Return when every server answers; True when at least one did not answer at first."""
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._wait(), name="outage watch")
        return await asyncio.shield(self._watch)

    async def stop(self) -> None:
        """End the watch."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    async def _wait(self) -> bool:
        was_away = False
        pause_s = FIRST_PAUSE_S
        while away := await self._away():
            if not was_away:
                log.warning("Functions wait for a server that does not answer", servers=away)
            was_away = True
            await asyncio.sleep(pause_s)
            pause_s = min(PAUSE_CAP_S, pause_s * 2)
        if was_away:
            log.info("All servers answer again")
        return was_away

    async def _away(self) -> list[str]:
        probes = dict(self._probes)  # A reload may add one meanwhile.
        answers = await asyncio.gather(
            *(asyncio.wait_for(probe(), PROBE_LIMIT_S) for probe in probes.values()),
            return_exceptions=True,
        )
        return [
            name
            for name, answer in zip(probes, answers, strict=True)
            if isinstance(answer, Exception)
        ]
