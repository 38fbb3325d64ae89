"""Reads and judges a batch, and collects the rows, refusals and jobs to write. Does no I/O."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from functions.domain.envelope import MAX_PAYLOAD_BYTES, BadEnvelope, Envelope, read_envelope
from functions.domain.quarantine import Refusal
from functions.domain.registry import DeviceKey, RegisteredDevice, TenantRoutes
from functions.domain.topics import Topic
from functions.ingest.checks import Accepted, Refused, Verdict
from functions.ingest.jobs import JobMaker
from runtime import Message, Publication

_NS_PER_US = 1000
_US_PER_S = 1_000_000

Judge = Callable[[Envelope, RegisteredDevice | None, Message], Verdict]


class Row(NamedTuple):
    """A row of table `telemetry`, in the order of its columns."""

    time: datetime
    tenant_id: str
    device_id: str
    site_id: str
    msg_type: str
    seq: int
    metrics: str


class DiscoveredSensor(NamedTuple):
    """A metric's name that is not yet a sensor of the device."""

    device: RegisteredDevice
    tenant_id: str
    device_id: str
    sensor: str
    first_seen_at: datetime


@dataclass(slots=True)
class Plan:
    """The writes of a batch. `sources` are the messages of `rows`, in the same order."""

    rows: list[Row] = field(default_factory=list)
    sources: list[Message] = field(default_factory=list)
    refused: list[tuple[Message, Refusal]] = field(default_factory=list)
    discovered: dict[tuple[str, str, str], DiscoveredSensor] = field(default_factory=dict)
    jobs: list[tuple[Message, Publication]] = field(default_factory=list)

    def accept(self, message: Message, topic: Topic, time: datetime, accepted: Accepted) -> None:
        """Add the row of an accepted message."""
        tenant_id, device_id, msg_type = topic
        site_id, metrics = accepted
        text = orjson.dumps(metrics).decode()
        self.rows.append(Row(time, tenant_id, device_id, site_id, msg_type, message.sequence, text))
        self.sources.append(message)

    def discover(
        self, device: RegisteredDevice, topic: Topic, time: datetime, metrics: dict[str, Any]
    ) -> None:
        """Add the names that are not yet sensors of the device."""
        for sensor in metrics:
            if sensor not in device.sensors:
                key = (topic.tenant_id, topic.device_id, sensor)
                self.discovered.setdefault(key, DiscoveredSensor(device, *key, time))

    def refuse_row(self, place: int, reason: str, detail: str) -> None:
        """Refuse the message of row `place`, and drop its jobs; later rows move up by one."""
        message, row = self.sources.pop(place), self.rows.pop(place)
        topic = Topic(row.tenant_id, row.device_id, row.msg_type)
        self.refused.append((message, Refusal(reason, detail, topic, row.site_id)))
        self.jobs = [(source, job) for source, job in self.jobs if source is not message]


@dataclass(slots=True)
class Settled:
    """Messages that an earlier delivery wrote or refused, by stream sequence and stored time."""

    written: set[tuple[int, datetime]] = field(default_factory=set)
    quarantined: set[tuple[int, datetime]] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.written or self.quarantined)

    def is_written(self, message: Message, time: datetime) -> bool:
        """Whether the message has its row already."""
        return (message.sequence, time) in self.written

    def is_quarantined(self, message: Message, time: datetime) -> bool:
        """Whether the message is in quarantine already."""
        return (message.sequence, time) in self.quarantined


@dataclass(slots=True)
class Known:
    """What the registry says of a batch's devices and tenants."""

    devices: Mapping[DeviceKey, RegisteredDevice | None]
    routes: Mapping[str, TenantRoutes | None]


def stored_at(message: Message) -> datetime:
    """When the stream stored the message, to the microsecond: the same on every delivery."""
    return datetime.fromtimestamp(message.stored_at_ns // _NS_PER_US / _US_PER_S, UTC)


def read_telemetry(message: Message, limit_bytes: int = MAX_PAYLOAD_BYTES) -> Envelope | Refusal:
    """The message's envelope, or why it cannot be read."""
    try:
        return read_envelope(message, limit_bytes)
    except BadEnvelope as bad:
        return Refusal.of_message(message, bad)
    except Exception as failure:  # noqa: BLE001 - one message must not fail its whole batch
        return _unforeseen(failure)


def make_plan(
    batch: Sequence[tuple[Message, Envelope | Refusal]],
    known: Known,
    settled: Settled,
    judge: Judge,
    job_maker: JobMaker,
) -> Plan:
    """Judge every message, and collect the rows, refusals, new sensors and jobs."""
    plan = Plan()
    devices, routes = known.devices, known.routes
    # Rarely true, so test it once: to hash a time costs more than to make it.
    some_are_settled = bool(settled)
    for message, reading in batch:
        if isinstance(reading, Refusal):
            plan.refused.append((message, reading))
            continue
        time = stored_at(message)
        if some_are_settled and settled.is_quarantined(message, time):
            continue
        topic = reading.topic
        tenant_id = topic.tenant_id
        is_written = some_are_settled and settled.is_written(message, time)
        try:
            device = devices[(tenant_id, topic.device_id)]
            verdict = None if is_written else judge(reading, device, message)
            if isinstance(verdict, Refused):
                refusal = Refusal.of_envelope(reading, verdict.reason, verdict.detail)
                plan.refused.append((message, refusal))
                continue
            of_tenant = routes[tenant_id]
            if of_tenant is not None and (matching := of_tenant.on(topic)):
                jobs = job_maker.make(message, reading, time, matching)
                plan.jobs += [(message, job) for job in jobs]
            # Accept last: an exception after this line would refuse an accepted message.
            if verdict is not None:
                plan.accept(message, topic, time, verdict)
                if device is not None and device.misses(verdict.metrics):
                    plan.discover(device, topic, time, verdict.metrics)
        except Exception as failure:
            if is_written:
                raise
            plan.refused.append((message, _unforeseen(failure, reading)))
    return plan


def _unforeseen(failure: Exception, envelope: Envelope | None = None) -> Refusal:
    reason, detail = f"INGEST_EXCEPTION:{type(failure).__name__}", "the checks failed unexpectedly"
    return Refusal.of_envelope(envelope, reason, detail) if envelope else Refusal(reason, detail)


__all__ = ["Known", "Plan", "Row", "Settled", "make_plan", "read_telemetry", "stored_at"]
