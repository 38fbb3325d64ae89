"""Binding of a function to a schedule: each tick is stored once in the whole cluster.

Every host that runs the function tries to store the due tick, and one succeeds. The function
consumes its ticks like any other message: retries, time limit and dead letters are those of a
consumer.
"""

import asyncio
from datetime import datetime, timedelta

from runtime.broker.clock import Clock
from runtime.broker.connection import ApiError, Broker
from runtime.broker.ticks import Kept, TickBook
from runtime.errors import Unavailable
from runtime.manifest.model import ScheduleBindingSpec
from runtime.observe.logs import get_logger
from runtime.supervised_task import SupervisedTask

log = get_logger("runtime.schedule")

SLACK = timedelta(minutes=1)
"""A tick that is late by at most this time is not missed, and a host that starts within this time
after a tick does not store another."""
WAITING_MOST = 100
"""The most ticks that wait for their function, running calls included."""
_LOOK_AGAIN = timedelta(seconds=30)
_TRY_AGAIN_S = 1.0


class ScheduleTicker:
    """Stores the ticks of one function until stopped.

    Args:
        broker: the connection.
        function: the function.
        schedule: when it is due.
        clock: tells the time.
        has_run: whether the function ran in this process before, so that no tick is due only
            because it starts.
    """

    def __init__(
        self,
        broker: Broker,
        function: str,
        schedule: ScheduleBindingSpec,
        clock: Clock,
        *,
        has_run: bool = False,
    ) -> None:
        self.name = f"{function} (clock)"
        self._ticks = TickBook(broker, function)
        self._schedule = schedule
        self._clock = clock
        self._trigger = schedule.trigger
        self._starting = schedule.at_start and not has_run
        self._kept: Kept | None = None
        self._held_back = ""
        self._task = SupervisedTask(self._run, f"schedule {function}")
        self._log = log.bind(function=function)

    @property
    def is_flowing(self) -> bool:
        """Whether the ticker works."""
        return self._task.is_flowing

    async def start(self) -> None:
        """Start to store ticks."""
        self._task.start()

    async def drain(self, grace_s: float) -> None:
        """Tick no more."""
        await self.stop()

    async def stop(self) -> None:
        """Tick no more."""
        await self._task.stop()

    async def _run(self) -> None:
        failing = False
        self._kept = None  # The value of the run before may be why that run failed.
        while True:
            try:
                await self._turn()
                failing = False
            except (Unavailable, ApiError) as failure:
                if not failing:
                    self._log.warning("No ticks now, trying again", reason=str(failure))
                failing = True
                self._kept = None
                await asyncio.sleep(_TRY_AGAIN_S)

    async def _turn(self) -> None:
        """Store the due tick, or wait until one may be due."""
        now = await self._clock.now()
        kept = self._kept = self._kept or await self._ticks.last(now)
        due = self._due(kept, now)
        if due is None:
            self._starting = False
            await self._wait(self._trigger.next_after(max(now, kept.until)), now)
        elif await self._is_held_back():
            await self._wait(self._trigger.next_after(now), now)
        else:
            self._kept = await self._ticks.store(due, kept)

    def _due(self, kept: Kept, now: datetime) -> datetime | None:
        if self._starting and (not kept.sequence or now - kept.until > SLACK):
            return now
        latest = self._trigger.latest(now)
        if latest is None or latest <= kept.until:
            return None
        missed = now - latest > SLACK
        return None if missed and self._schedule.missed == "skip" else latest

    async def _wait(self, tick: datetime | None, now: datetime) -> None:
        soon = now + _LOOK_AGAIN
        await self._clock.wait_until(min(tick, soon) if tick is not None else soon)

    async def _is_held_back(self) -> bool:
        """Whether the function cannot take another tick; a change is logged."""
        backlog = await self._ticks.backlog()
        reason = ""
        if backlog.is_paused:
            reason = "the function is paused"
        elif backlog.ticks >= WAITING_MOST:
            reason = f"{backlog.ticks} ticks wait already"
        if reason and not self._held_back:
            self._log.warning("No ticks for now", reason=reason)
        elif self._held_back and not reason:
            self._log.info("Ticks are stored again")
        self._held_back = reason
        return bool(reason)
