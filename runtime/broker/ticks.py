"""Ticks of schedules: messages of the stream `SCHEDULES`, each stored once in the whole cluster.

The last tick on a function's subject says up to when the schedule has been kept. A tick is stored
on the condition that the last one has not changed, so of several hosts exactly one succeeds.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from runtime.broker import stored
from runtime.broker.connection import Broker
from runtime.broker.stream_configs import SCHEDULES, tick_consumer
from runtime.errors import PublishFailed
from runtime.manifest.model import ConsumerSpec, Manifest, StreamSpec
from runtime.message import DUE_AT
from runtime.observe.logs import get_logger

log = get_logger("runtime.schedule")

TICK_ACK_WAIT_S = 15.0
"""After a host died, the tick that it was running is called again after this time.

Hosts of a version whose ticks had 30 s say every 10 s that they go on, which has to be in time.
"""

_KEPT = 1000
_AHEAD_MOST = timedelta(hours=1)


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
        ).model_copy(update={"ack_wait": TICK_ACK_WAIT_S})
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


@dataclass(frozen=True, slots=True)
class Backlog:
    """The ticks that a function has not settled, and whether the function is paused."""

    ticks: int
    is_paused: bool


class TickBook:
    """Reads and stores the ticks of one function."""

    def __init__(self, broker: Broker, function: str) -> None:
        self._broker = broker
        self._function = function

    async def last(self, now: datetime) -> Kept:
        """Read the last tick; before the first tick, the time when the consumer was created.

        Raises:
            ApiError: the consumer is gone.
            Unavailable: JetStream does not answer.
        """
        found = await stored.last(self._broker, SCHEDULES, tick_subject(self._function))
        sequence = found.sequence if found is not None else 0
        if found is not None and DUE_AT in found.headers:
            until = datetime.fromisoformat(found.headers[DUE_AT])
        else:
            created_ns = stored.parse_time_ns((await self._consumer())["created"])
            until = datetime.fromtimestamp(created_ns / 1e9, tz=UTC)
        if until > now + _AHEAD_MOST:
            # The server's clock was wrong and has been set back: the schedule must not pause until
            # that time.
            if sequence:
                log.warning(
                    "The last tick lies ahead of JetStream's clock",
                    function=self._function,
                    due_at=until,
                )
            until = now
        return Kept(until, sequence)

    async def store(self, due: datetime, after: Kept) -> Kept:
        """Store a tick, unless another host has stored one; return the last tick.

        Raises:
            PublishFailed: the tick was not stored, as far as is known.
            ApiError, Unavailable: as `last`.
        """
        due_at = due.isoformat()
        headers = {
            DUE_AT: due_at,
            "Nats-Expected-Last-Subject-Sequence": str(after.sequence),
        }
        try:
            ack = await self._broker.publish(
                tick_subject(self._function),
                b"",
                msg_id=f"{self._function}-{due_at}",
                headers=headers,
            )
        except PublishFailed:
            last = await self.last(due)
            if last.sequence == after.sequence:
                raise
            return last
        return Kept(due, ack.sequence)

    async def backlog(self) -> Backlog:
        """Count the ticks that wait for the function, running calls included.

        Raises:
            ApiError: the consumer is gone.
            Unavailable: JetStream does not answer.
        """
        consumer = await self._consumer()
        ticks = int(consumer["num_pending"]) + int(consumer["num_ack_pending"])
        return Backlog(ticks, bool(consumer.get("paused")))

    async def _consumer(self) -> dict[str, Any]:
        return await self._broker.api(f"CONSUMER.INFO.{SCHEDULES}.{tick_consumer(self._function)}")
