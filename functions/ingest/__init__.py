"""Ingest of telemetry: checks each message, writes it exactly once, publishes its route jobs.

The steps of a batch, in this order: read (`plan`), check (`checks`), write rows and quarantine in
one transaction (`writing`), publish the route jobs (`jobs`). Then the host acknowledges the batch.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from functions.domain.envelope import Envelope
from functions.domain.quarantine import Refusal
from functions.domain.rate_limiter import RateLimiter
from functions.domain.refusal_log import log_refusals
from functions.domain.registry import DeviceKey, RegisteredDevice, Registry
from functions.ingest.checks import Limits, Verdict, check
from functions.ingest.jobs import JobMaker
from functions.ingest.plan import Known, Plan, make_plan, read_telemetry
from functions.ingest.writing import find_settled, write
from runtime import Batch, Context, Message

_PARTITION_DAYS = 7


class IngestSettings(BaseModel):
    """Limits of a device's message, and the credentials that a device must send.

    `certificates`: `off` ignores user names. `optional` accepts a user name tenant/device, which
    the ingress takes from a client certificate's common name, in place of a token that is not sent.
    `required` refuses every other message. Set it only where every ingress sets the user name
    itself: a client that may publish to NATS can claim any name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_payload_bytes: Annotated[int, Field(ge=1, le=1_000_000)] = 8192
    rate_per_s: Annotated[float, Field(gt=0, le=100_000)] = 5.0
    burst: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    max_metrics: Annotated[int, Field(ge=0, le=1000)] = 50
    max_metric_key_length: Annotated[int, Field(ge=1, le=512)] = 128
    require_token: bool = True
    require_subscription: bool = True
    certificates: Literal["off", "optional", "required"] = "off"

    def limits(self) -> Limits:
        """The limits that the checks use."""
        return Limits(
            self.max_payload_bytes,
            self.max_metrics,
            self.max_metric_key_length,
            self.require_token,
            self.require_subscription,
            self.certificates,
        )


# The name under which the host looks for a function's settings.
Settings = IngestSettings


@dataclass(slots=True)
class IngestState:
    """State of the function from start to stop.

    Attributes:
        registry: looks up devices and routes.
        limits: limits of a message.
        rate: rate limiter per device.
        job_maker: makes route jobs.
        in_order: held while a batch is judged, since the rate limiter needs the stream's order.
            Batches are written concurrently.
    """

    registry: Registry
    limits: Limits
    rate: RateLimiter[DeviceKey]
    job_maker: JobMaker
    in_order: asyncio.Lock = field(default_factory=asyncio.Lock)

    def judge(
        self, envelope: Envelope, device: RegisteredDevice | None, message: Message
    ) -> Verdict:
        """The verdict on a message. A repeat takes no rate token: its row may exist already."""
        rate = None if message.may_be_repeated else self.rate
        return check(envelope, device, message.stored_at_ns, self.limits, rate)


async def start(ctx: Context[IngestState]) -> IngestState:
    """Make the partitions of the next days, and start to listen for changes of the registry."""
    settings: IngestSettings = ctx.settings
    await ctx.postgres.execute("SELECT ensure_telemetry_partitions($1)", _PARTITION_DAYS)
    registry = Registry(ctx.postgres, ctx.log)
    await registry.start()
    return IngestState(
        registry,
        settings.limits(),
        RateLimiter(settings.rate_per_s, settings.burst),
        JobMaker(ctx.log),
    )


async def stop(ctx: Context[IngestState]) -> None:
    """Return the registry's connection to the pool."""
    await ctx.state.registry.stop()


async def ingest(batch: Batch[bytes], ctx: Context[IngestState]) -> None:
    """Write a batch and publish its route jobs. Returns only when all of it is durable."""
    state = ctx.state
    limit_bytes = state.limits.max_payload_bytes
    read = [(event.message, read_telemetry(event.message, limit_bytes)) for event in batch]
    async with state.in_order:
        plan = await _plan(read, ctx)
    await write(ctx.postgres, plan)
    log_refusals(ctx, (refusal for _, refusal in plan.refused))
    if plan.jobs:
        await ctx.publish_many([job for _, job in plan.jobs])


async def _plan(read: list[tuple[Message, Envelope | Refusal]], ctx: Context[IngestState]) -> Plan:
    state = ctx.state
    topics = {reading.topic for _, reading in read if isinstance(reading, Envelope)}
    known = Known(
        await state.registry.devices((topic.tenant_id, topic.device_id) for topic in topics),
        await state.registry.routes(topic.tenant_id for topic in topics),
    )
    settled = await find_settled(
        ctx.postgres,
        (
            (message, reading.topic if isinstance(reading, Envelope) else None)
            for message, reading in read
            if message.may_be_repeated
        ),
    )
    return make_plan(read, known, settled, state.judge, state.job_maker)


__all__ = ["IngestSettings", "IngestState", "Settings", "ingest", "start", "stop"]
