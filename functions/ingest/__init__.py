"""Ingest of telemetry: checks each message, writes it exactly once, and makes its route jobs.

The steps of a batch, in this order: read (`plan`), check (`checks`), make the route jobs (`jobs`),
write rows, jobs and quarantine in one transaction (`writing`). Then the host acknowledges it.
Another function publishes the jobs, so a full stream of jobs does not stop ingest. A copy of a
message from quarantine is judged as a message of now, and written as the one that it is a copy of.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from functions.domain.admission import CertificatePolicy
from functions.domain.envelope import Envelope
from functions.domain.evaluation.budget import EvaluationLimits
from functions.domain.evaluation.evaluator import Evaluator
from functions.domain.job_bounds import JobBounds, JobLimits
from functions.domain.quarantine import Refusal
from functions.domain.quarantine_replays import Copy, find_copies
from functions.domain.rate_limiter import RateLimiter
from functions.domain.rate_sharing import PostgresStore, RateSharing
from functions.domain.refusal_log import log_refusals
from functions.domain.registry import RegisteredDevice, Registry
from functions.ingest.checks import Limits, Verdict, check
from functions.ingest.device_rates import DeviceRates
from functions.ingest.jobs import JobMaker
from functions.ingest.moved_devices import MovedDevices
from functions.ingest.partitions import ensure_partitions
from functions.ingest.plan import Known, Plan, Settled, make_plan, read_telemetry
from functions.ingest.turns import Turns
from functions.ingest.writing import find_settled, write
from runtime import Batch, Context, Message

_PARTITION_DAYS = 7
_MESSAGE = attrgetter("message")


class IngestSettings(BaseModel):
    """Limits of a device's message, and the credentials that a device must send.

    `rate_per_s`, `burst`: messages of a device. `backfill_rate_per_s`, `backfill_burst`: those that
    it measured long before it sent them, as after an outage; see `DeviceRates`.
    `tenant_rate_per_s`, `tenant_burst`: messages of all devices of a tenant; 0 for no limit.

    `certificates`: see `CertificatePolicy`. Set it only where every ingress sets the user name
    itself: a client that may publish to NATS can claim any name.

    `max_jobs_per_message`, `max_waiting_bytes` of a tenant: a job beyond them is refused. It leaves
    a dead letter while the tenant's refused and dead jobs have at most `max_given_up_bytes`.

    `filter_burst_s`, `filter_share`: processor time that a tenant's filters may use beyond the
    usual, at once and in each second. What exceeds it is not evaluated: the rows are written, and
    the tenant is told which messages have no jobs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_payload_bytes: Annotated[int, Field(ge=1, le=1_000_000)] = 8192
    rate_per_s: Annotated[float, Field(gt=0, le=100_000)] = 5.0
    burst: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    backfill_rate_per_s: Annotated[float, Field(gt=0, le=100_000)] = 5.0
    backfill_burst: Annotated[int, Field(ge=1, le=10_000_000)] = 20_000
    tenant_rate_per_s: Annotated[float, Field(ge=0, le=10_000_000)] = 0.0
    tenant_burst: Annotated[int, Field(ge=1, le=100_000_000)] = 50_000
    max_metrics: Annotated[int, Field(ge=0, le=1000)] = 50
    max_metric_key_length: Annotated[int, Field(ge=1, le=512)] = 128
    require_token: bool = True
    require_subscription: bool = True
    certificates: CertificatePolicy = "off"
    max_jobs_per_message: Annotated[int, Field(ge=1, le=10_000)] = 100
    max_waiting_bytes: Annotated[int, Field(ge=1_000, le=10**15)] = 256_000_000
    max_given_up_bytes: Annotated[int, Field(ge=0, le=10**15)] = 64_000_000
    filter_burst_s: Annotated[float, Field(ge=0.2, le=60)] = 0.5
    filter_share: Annotated[float, Field(gt=0, le=1)] = 0.05

    def evaluation_limits(self) -> EvaluationLimits:
        """The bounds on filters."""
        return EvaluationLimits(burst_s=self.filter_burst_s, share=self.filter_share)

    def job_limits(self) -> JobLimits:
        """The bounds on jobs."""
        return JobLimits(self.max_jobs_per_message, self.max_waiting_bytes, self.max_given_up_bytes)

    def device_rates(self) -> DeviceRates:
        """The message rates of the devices, with nothing used."""
        tenants: RateLimiter[str] | None = None
        if self.tenant_rate_per_s:
            tenants = RateLimiter(self.tenant_rate_per_s, self.tenant_burst)
        return DeviceRates(
            self.rate_per_s,
            self.burst,
            self.backfill_rate_per_s,
            self.backfill_burst,
            tenants=tenants,
        )

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
        rates: message rates of the devices.
        sharing: tells other hosts what was taken of the rates.
        moved: notes devices that have changed from MQTT to another door.
        evaluator: evaluates filters and order keys in another process.
        job_maker: makes route jobs.
        judging: the turns in which batches are judged, since the rates need the stream's order.
        writing: the turns in which batches with jobs in an order are written.
    """

    registry: Registry
    limits: Limits
    rates: DeviceRates
    sharing: RateSharing
    moved: MovedDevices
    evaluator: Evaluator
    job_maker: JobMaker
    judging: Turns = field(default_factory=Turns)
    writing: Turns = field(default_factory=Turns)

    def judge(
        self, envelope: Envelope, device: RegisteredDevice | None, message: Message
    ) -> Verdict:
        """The verdict on a message. A repeat takes no rate token: its row may exist already."""
        rates = None if message.may_be_repeated else self.rates
        return check(envelope, device, message.stored_at_ns, self.limits, rates)


async def start(ctx: Context[IngestState]) -> IngestState:
    """Make the partitions of the next days, and start to listen for changes of the registry."""
    settings: IngestSettings = ctx.settings
    await ensure_partitions(ctx, _PARTITION_DAYS)
    moved = MovedDevices(ctx.postgres, ctx.log)
    registry = Registry(ctx.postgres, ctx.log, on_moved=moved.add)
    await registry.start()
    evaluator = Evaluator(ctx.log, settings.evaluation_limits())
    rates = settings.device_rates()
    sharing = RateSharing("ingest", rates.limiters, PostgresStore(ctx.postgres), ctx.log)
    sharing.start()
    return IngestState(
        registry,
        settings.limits(),
        rates,
        sharing,
        moved,
        evaluator,
        JobMaker(ctx.log, evaluator, JobBounds(settings.job_limits(), ctx.log)),
    )


async def stop(ctx: Context[IngestState]) -> None:
    """Return the registry's connection to the pool, and end the process of the filters."""
    await ctx.state.sharing.stop()
    await ctx.state.registry.stop()
    await ctx.state.moved.stop()
    await ctx.state.evaluator.close()


async def ingest(batch: Batch[bytes], ctx: Context[IngestState]) -> None:
    """Write a batch with its route jobs. Returns only when all of it is durable.

    Batches run beside each other. Only the judging follows the stream's order, because the rates
    need it, and of batches with jobs in an order also the writing. No batch waits for the filters
    of another.
    """
    state = ctx.state
    with ExitStack() as turns:
        judging = turns.enter_context(state.judging.enter())
        reading = await _read(batch, ctx)
        known, settled = await _look_up(reading, ctx)
        await judging.reached()
        plan = _judge(reading, known, settled, state)
        # In the turn, so that batches write their jobs in the order in which they were judged.
        writing = turns.enter_context(state.writing.enter()) if plan.has_order else None
        judging.leave()
        bounds, undecided = state.job_maker.bounds, state.job_maker.undecided
        plan.add_jobs(await state.job_maker.make(plan.candidates))
        refused = bounds.notices(job for _, job in plan.jobs)
        unevaluated = undecided.notices()
        plan.notices = [*refused, *unevaluated]
        if writing is not None:
            await writing.reached()
        unkept = await write(ctx.postgres, plan)
    bounds.told(refused)
    undecided.told(unevaluated)
    log_refusals(ctx, (refusal for _, refusal in plan.refused), unkept)


class _Reading(NamedTuple):
    """What a batch holds.

    Attributes:
        messages: the messages with what was read of them; of a copy from quarantine the original.
        copies: copies of messages that wait for them in quarantine, by the original.
        closed: copies of messages that wait no longer.
    """

    messages: list[tuple[Message, Envelope | Refusal]]
    copies: dict[Message, Copy]
    closed: list[Message]


async def _read(batch: Batch[bytes], ctx: Context[IngestState]) -> _Reading:
    limit_bytes = ctx.state.limits.max_payload_bytes
    copies = await find_copies(ctx.postgres, (event.message for event in batch))
    if not copies:
        return _Reading([(m, read_telemetry(m, limit_bytes)) for m in map(_MESSAGE, batch)], {}, [])
    messages: list[tuple[Message, Envelope | Refusal]] = []
    closed: list[Message] = []
    for message in map(_MESSAGE, batch):
        if (copy := copies.get(message)) is None:
            messages.append((message, read_telemetry(message, limit_bytes)))
        elif copy.is_open:
            messages.append((copy.original, read_telemetry(message, limit_bytes)))
        else:
            closed.append(message)
    waiting = {copy.original: copy for copy in copies.values() if copy.is_open}
    return _Reading(messages, waiting, closed)


async def _look_up(reading: _Reading, ctx: Context[IngestState]) -> tuple[Known, Settled]:
    """What the registry says of the batch, and which messages were settled before."""
    state = ctx.state
    topics = {envelope.topic for _, envelope in reading.messages if type(envelope) is Envelope}
    known = Known(
        await state.registry.devices(
            {(tenant_id, device_id) for tenant_id, device_id, _ in topics}
        ),
        await state.registry.routes({tenant_id for tenant_id, _, _ in topics}),
    )
    repeats = [
        (message, envelope.topic if isinstance(envelope, Envelope) else None)
        for message, envelope in reading.messages
        if message.may_be_repeated and message not in reading.copies
    ]
    settled = await find_settled(ctx.postgres, repeats)
    routed = (tenant_id for tenant_id, routes in known.routes.items() if routes is not None)
    await state.job_maker.bounds.refresh(ctx.postgres, routed)
    return known, settled


def _judge(reading: _Reading, known: Known, settled: Settled, state: IngestState) -> Plan:
    copies = reading.copies

    def judge(envelope: Envelope, device: RegisteredDevice | None, message: Message) -> Verdict:
        copy = copies.get(message)
        return state.judge(envelope, device, message if copy is None else copy.present)

    chosen = judge if copies else state.judge
    plan = make_plan(reading.messages, known, settled, chosen, copies=copies)
    plan.repeated += reading.closed
    return plan


__all__ = ["IngestSettings", "IngestState", "Settings", "ingest", "start", "stop"]
