"""Binding of a function to a schedule: each tick is stored once in the whole cluster.

A tick is a message of the stream `SCHEDULES`. The last tick on a function's subject says up to when
the schedule has been kept. Every host that runs the function tries to store the due tick on the
condition that the last tick has not changed, so exactly one host succeeds. The function consumes
its ticks like any other message: retries, time limit and dead letters are those of a consumer.
"""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from runtime.broker import stored
from runtime.broker.clock import Clock
from runtime.broker.connection import ApiError, Broker
from runtime.broker.stream_configs import SCHEDULES, tick_consumer
from runtime.errors import PublishFailed, Unavailable
from runtime.manifest.model import ConsumerSpec, Manifest, ScheduleBindingSpec, StreamSpec
from runtime.message import DUE_AT
from runtime.observe.logs import get_logger
from runtime.supervised_task import SupervisedTask

log = get_logger("runtime.schedule")

SLACK = timedelta(minutes=1)
"""A tick that is late by at most this time is not missed, and a host that starts within this time
after a tick does not store another."""
WAITING_MOST = 100
"""The most ticks that wait for their function, running calls included."""
_KEPT = 1000
_AHEAD_MOST = timedelta(hours=1)
_LOOK_AGAIN = timedelta(seconds=30)
_TRY_AGAIN_S = 1.0


def tick_subject(function: str) -> str:
    """The subject of a function's ticks."""
    return f"schedules.{function}"


def with_ticks(manifest: Manifest) -> Manifest:
    """The manifest with the stream of ticks and a consumer for each scheduled function."""
    consumers = {
        # A consumer that is created anew must not run the stored ticks again.
        tick_consumer(name): ConsumerSpec(
            filter_subjects=(tick_subject(name),),
            deliver="new",
            max_deliver=spec.retry.max_attempts,
        )
        for name, spec in manifest.functions.items()
        if spec.schedule
    }
    if not consumers:
        return manifest
    stream = StreamSpec(
        subjects=("schedules.>",),
        max_msgs_per_subject=_KEPT,
        description="ticks of scheduled functions, the last ones of each",
        consumers=consumers,
    )
    replicas = max((spec.replicas for spec in manifest.streams.values()), default=1)
    if replicas > 1:
        stream = stream.model_copy(update={"replicas": replicas})
    return manifest.model_copy(update={"streams": {**manifest.streams, SCHEDULES: stream}})


@dataclass(frozen=True, slots=True)
class Kept:
    """The time up to which a schedule has been kept.

    Attributes:
        until: time of the last tick; before the first tick, the time when the schedule began.
        sequence: sequence of the last tick in its stream; 0 before the first tick.
    """

    until: datetime
    sequence: int


class ScheduleTicker:
    """Stores the ticks of one function until stopped."""

    def __init__(
        self, broker: Broker, function: str, schedule: ScheduleBindingSpec, clock: Clock
    ) -> None:
        self.name = f"{function} (clock)"
        self._broker = broker
        self._function = function
        self._schedule = schedule
        self._clock = clock
        self._trigger = schedule.trigger
        self._starting = schedule.at_start
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
        kept = self._kept = self._kept or await self._read_last_tick(now)
        due = self._due(kept, now)
        if due is None:
            self._starting = False
            await self._wait(self._trigger.next_after(max(now, kept.until)), now)
        elif await self._is_held_back():
            await self._wait(self._trigger.next_after(now), now)
        else:
            await self._store(due, kept)

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

    async def _store(self, due: datetime, kept: Kept) -> None:
        """Store the tick, unless another host has.

        Raises:
            PublishFailed: the tick was not stored, as far as is known.
        """
        due_at = due.isoformat()
        headers = {
            DUE_AT: due_at,
            "Nats-Expected-Last-Subject-Sequence": str(kept.sequence),
        }
        try:
            ack = await self._broker.publish(
                tick_subject(self._function),
                b"",
                msg_id=f"{self._function}-{due_at}",
                headers=headers,
            )
        except PublishFailed:
            self._kept = await self._read_last_tick(due)
            if self._kept.sequence == kept.sequence:
                raise
        else:
            self._kept = Kept(due, ack.sequence)

    async def _read_last_tick(self, now: datetime) -> Kept:
        """Read the last tick; before the first tick, the time when the consumer was created."""
        last = await stored.last(self._broker, SCHEDULES, tick_subject(self._function))
        if last is not None and DUE_AT in last.headers:
            until, sequence = datetime.fromisoformat(last.headers[DUE_AT]), last.sequence
        else:
            until = datetime.fromtimestamp(await self._created_at_s(), tz=UTC)
            sequence = last.sequence if last is not None else 0
        if until > now + _AHEAD_MOST:
            # The server's clock was wrong and has been set back: the schedule must not pause until
            # that time.
            if sequence:
                self._log.warning("The last tick lies ahead of JetStream's clock", due_at=until)
            until = now
        return Kept(until, sequence)

    async def _created_at_s(self) -> float:
        return stored.parse_time_ns((await self._consumer())["created"]) / 1e9

    async def _is_held_back(self) -> bool:
        """Whether the function cannot take another tick; a change is logged."""
        consumer = await self._consumer()
        waiting = consumer["num_pending"] + consumer["num_ack_pending"]
        reason = ""
        if consumer.get("paused"):
            reason = "the function is paused"
        elif waiting >= WAITING_MOST:
            reason = f"{waiting} ticks wait already"
        if reason and not self._held_back:
            self._log.warning("No ticks for now", reason=reason)
        elif self._held_back and not reason:
            self._log.info("Ticks are stored again")
        self._held_back = reason
        return bool(reason)

    async def _consumer(self) -> dict[str, Any]:
        return await self._broker.api(f"CONSUMER.INFO.{SCHEDULES}.{tick_consumer(self._function)}")
