"""Reads and judges a batch, and collects the rows, refusals and jobs to write. Does no I/O."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from functions.domain.device_activity import Seen
from functions.domain.device_time import MAX_AHEAD_NS, as_time
from functions.domain.envelope import MAX_PAYLOAD_BYTES, BadEnvelope, Envelope, read_envelope
from functions.domain.notices import Notice
from functions.domain.outbox import NewJob
from functions.domain.quarantine import Refusal
from functions.domain.quarantine_replays import Copy
from functions.domain.registry import DeviceKey, RegisteredDevice, TenantRoutes
from functions.domain.topics import Topic
from functions.ingest.checks import Accepted, Refused, Verdict
from functions.ingest.jobs import Candidate, MadeJobs
from runtime import Message

_NS_PER_US = 1000
_US_PER_S = 1_000_000
SURE_NS = 10_000_000_000
"""Half of the ack wait in the manifest."""

Judge = Callable[[Envelope, RegisteredDevice | None, Message], Verdict]


class Row(NamedTuple):
    """A row of table `telemetry`, in the order of its columns.

    `time`: when the stream stored the message. `device_time`: when the device measured, if it says.
    """

    time: datetime
    tenant_id: str
    device_id: str
    site_id: str
    msg_type: str
    seq: int
    metrics: str
    device_time: datetime | None = None


class DiscoveredSensor(NamedTuple):
    """A metric's name that is not yet a sensor of the device."""

    device: RegisteredDevice
    tenant_id: str
    device_id: str
    sensor: str
    first_seen_at: datetime


@dataclass(slots=True)
class Plan:
    """The writes of a batch. `sources` are the messages of `rows`, in the same order.

    `repeated` are messages that an earlier delivery settled: they are counted only. `copies` are
    those of `sources` and `refused` that come from quarantine. `candidates` are those of `sources`
    for which jobs are to be made. `seen` are the devices of rows that are to be noted as seen, with
    the newest stored time.
    """

    rows: list[Row] = field(default_factory=list)
    sources: list[Message] = field(default_factory=list)
    refused: list[tuple[Message, Refusal]] = field(default_factory=list)
    repeated: list[Message] = field(default_factory=list)
    copies: Mapping[Message, Copy] = field(default_factory=dict)
    discovered: dict[tuple[str, str, str], DiscoveredSensor] = field(default_factory=dict)
    candidates: list[Candidate] = field(default_factory=list)
    jobs: list[tuple[Message, NewJob]] = field(default_factory=list)
    seen: dict[RegisteredDevice, tuple[DeviceKey, Seen]] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)

    def accept(self, message: Message, topic: Topic, time: datetime, accepted: Accepted) -> None:
        """Add the row of an accepted message."""
        tenant_id, device_id, msg_type = topic
        site_id, metrics, measured_at_ns = accepted
        text = orjson.dumps(metrics).decode()
        device_time = None
        # A copy from quarantine is judged by the clock of now, and has the time of its original.
        if measured_at_ns is not None and measured_at_ns - message.stored_at_ns <= MAX_AHEAD_NS:
            device_time = as_time(measured_at_ns)
        sequence = message.sequence
        self.rows.append(
            Row(time, tenant_id, device_id, site_id, msg_type, sequence, text, device_time)
        )
        self.sources.append(message)

    def discover(
        self, device: RegisteredDevice, topic: Topic, time: datetime, metrics: dict[str, Any]
    ) -> None:
        """Add the names that are not yet sensors of the device."""
        for sensor in metrics:
            if sensor not in device.sensors:
                key = (topic.tenant_id, topic.device_id, sensor)
                self.discovered.setdefault(key, DiscoveredSensor(device, *key, time))

    @property
    def has_order(self) -> bool:
        """Whether a job may have to follow others."""
        return any(route.order_key for each in self.candidates for route in each.routes)

    @property
    def accepted_copies(self) -> list[Copy]:
        """The copies that have a row."""
        return [self.copies[each] for each in self.sources if each in self.copies]

    @property
    def refused_copies(self) -> list[tuple[Copy, Refusal]]:
        """The copies that are refused again."""
        return [(self.copies[each], why) for each, why in self.refused if each in self.copies]

    @property
    def refused_first(self) -> list[tuple[Message, Refusal]]:
        """The refused messages that are no copies."""
        return [(each, why) for each, why in self.refused if each not in self.copies]

    def close_copies(self, still_open: Container[int]) -> None:
        """Drop the copies whose messages in quarantine are not among those that wait for them."""
        closed = {m for m, copy in self.copies.items() if copy.quarantine_id not in still_open}
        if closed:
            self.drop(closed)

    def drop(self, settled: AbstractSet[Message]) -> None:
        """Drop what the messages would have become: others have settled them."""
        pairs = zip(self.rows, self.sources, strict=True)
        kept = [(row, source) for row, source in pairs if source not in settled]
        self.rows = [row for row, _ in kept]
        self.sources = [source for _, source in kept]
        self.refused = [(each, why) for each, why in self.refused if each not in settled]
        self.jobs = [(source, job) for source, job in self.jobs if source not in settled]
        self.copies = {m: copy for m, copy in self.copies.items() if m not in settled}
        self.repeated += settled

    def unsure(self, messages: Iterable[Message], sure_since_ns: int) -> list[Message]:
        """Those of the messages that another host may have settled since they were looked for.

        A server delivers a message again when its first delivery was not settled for so long that
        it is older than `SURE_NS` then, and so are all copies of that delivery that come late: from
        a process that was stopped, or a connection that stood still.
        """
        found = [
            each
            for each in messages
            if each.stored_at_ns < sure_since_ns or each.attempt > 1 or each.called_before
        ]
        # Whoever judges a copy from quarantine has locked the original.
        return [each for each in found if each not in self.copies] if self.copies else found

    def refuse_row(self, place: int, reason: str, detail: str) -> None:
        """Refuse the message of row `place`, and drop its jobs; later rows move up by one."""
        message, row = self.sources.pop(place), self.rows.pop(place)
        topic = Topic(row.tenant_id, row.device_id, row.msg_type)
        self.refused.append((message, Refusal(reason, detail, topic, row.site_id)))
        self.jobs = [(source, job) for source, job in self.jobs if source is not message]

    def add_jobs(self, made: MadeJobs) -> None:
        """Take over the jobs. A message for which their making failed is refused whole."""
        self.jobs += made.jobs
        for message, failure in made.failed:
            place = next(at for at, source in enumerate(self.sources) if source is message)
            self.refuse_row(place, *_unforeseen_reason(failure))


@dataclass(slots=True)
class Settled:
    """Messages that an earlier delivery wrote or refused, by stream sequence and stored time."""

    written: set[tuple[int, datetime]] = field(default_factory=set)
    quarantined: set[tuple[int, datetime]] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.written or self.quarantined)

    def has(self, message: Message, time: datetime) -> bool:
        """Whether the message has its row already, or is in quarantine already."""
        key = (message.sequence, time)
        return key in self.written or key in self.quarantined


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
    *,
    copies: Mapping[Message, Copy] | None = None,
) -> Plan:
    """Judge every message, and collect the rows, refusals, new sensors and candidates for jobs.

    Args:
        batch: the messages with what was read of them; of a copy from quarantine the original.
        known: what the registry says.
        settled: the messages that an earlier delivery wrote or refused.
        judge: the verdict on a message.
        copies: those of the messages that are copies which their messages in quarantine wait for.
    """
    copies = copies or {}
    plan = Plan(copies=copies)
    devices, routes = known.devices, known.routes
    # Rarely true, so test it once: to hash a time costs more than to make it.
    some_are_settled = bool(settled)
    for message, reading in batch:
        if isinstance(reading, Refusal):
            plan.refused.append((message, reading))
            continue
        time = stored_at(message)
        # What was written has its jobs: they are in the transaction of its row.
        if some_are_settled and message not in copies and settled.has(message, time):
            plan.repeated.append(message)
            continue
        topic = reading.topic
        tenant_id = topic.tenant_id
        try:
            device = devices[(tenant_id, topic.device_id)]
            verdict = judge(reading, device, message)
            if isinstance(verdict, Refused):
                refusal = Refusal.of_envelope(reading, verdict.reason, verdict.detail)
                plan.refused.append((message, refusal))
                continue
            of_tenant = routes[tenant_id]
            matching = () if of_tenant is None else of_tenant.on(topic)
            # Accept last: an exception after this line would refuse an accepted message.
            plan.accept(message, topic, time, verdict)
            if matching:
                plan.candidates.append(Candidate(message, reading, time, matching))
            if device is not None:
                at_ns = message.stored_at_ns
                # As `Envelope.is_sessionless`, whose call would cost more than the rest.
                is_sessionless = reading.ts is not None
                device.sessionless_ns = at_ns if is_sessionless else device.sessionless_ns
                if at_ns - device.noted_ns >= device.note_every_ns:
                    seen = Seen(at_ns, is_sessionless)
                    plan.seen[device] = ((tenant_id, topic.device_id), seen)
                if device.misses(verdict.metrics):
                    plan.discover(device, topic, time, verdict.metrics)
        except Exception as failure:  # noqa: BLE001 - one message must not fail its whole batch
            plan.refused.append((message, _unforeseen(failure, reading)))
    return plan


def _unforeseen(failure: Exception, envelope: Envelope | None = None) -> Refusal:
    reason, detail = _unforeseen_reason(failure)
    return Refusal.of_envelope(envelope, reason, detail) if envelope else Refusal(reason, detail)


def _unforeseen_reason(failure: Exception) -> tuple[str, str]:
    return f"INGEST_EXCEPTION:{type(failure).__name__}", "the checks failed unexpectedly"


__all__ = ["Known", "Plan", "Row", "Settled", "make_plan", "read_telemetry", "stored_at"]
