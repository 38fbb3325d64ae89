"""The messages that send jobs again: from a job's row, or from the device's message.

A job goes where its route says today: its type or its order may have changed since it was made.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
from pydantic import ValidationError

from functions.domain.delivery_options import OrderKey
from functions.domain.envelope import BadEnvelope, read_envelope
from functions.domain.evaluation.evaluator import Evaluator
from functions.domain.evaluation.values import Ask, Steps
from functions.domain.expressions import variables_of
from functions.domain.identifiers import job_id
from functions.domain.outbox import NewJob
from functions.domain.route_decisions import TAKEN, Decision, decide, job_subject, steps_of
from functions.domain.topic_filters import topic_matches
from functions.domain.topics import Topic
from functions.route_delivery.delivery import REPLAY_HEADER
from functions.route_delivery.job import Job, without_device_secret
from runtime import Context, Message, Publication, RequestFailed

TELEMETRY = "TELEMETRY"
_NS = 1_000_000_000
_NS_PER_US = 1000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ORIGIN_PARTS = 3


@dataclass(frozen=True, slots=True)
class TargetRoute:
    """What is needed of a route to make jobs for it."""

    route_id: str
    destination_type: str
    topic_filter: str = ""
    payload_filter: str | None = None
    order_key: OrderKey | None = None

    @classmethod
    def of(cls, row: Any) -> "TargetRoute":  # noqa: ANN401 - a row
        """The route of a row."""
        route_id, order_by, expression = row["route_id"], row["order_by"], row["payload_filter"]
        return cls(
            route_id,
            row["destination_type"],
            row["topic_filter"],
            expression or None,
            OrderKey(order_by, route_id) if order_by else None,
        )

    @property
    def steps(self) -> Steps:
        """What is to be evaluated for a message on its topics; may be nothing."""
        return steps_of(self.payload_filter, self.order_key)

    def accepts_topic(self, topic: str) -> bool:
        """Whether the topic filter accepts a topic."""
        return topic_matches(self.topic_filter, topic)

    async def decide(
        self, evaluator: Evaluator, jobs: Sequence[Job], *, filtered: bool = True
    ) -> list[Decision]:
        """Whether the route takes the messages of jobs on its topics, and their order keys.

        Args:
            evaluator: evaluates filter and order key.
            jobs: the jobs.
            filtered: False: only the order keys are asked for, and a job without one is taken.
        """
        steps = steps_of(self.payload_filter if filtered else None, self.order_key)
        if not steps:
            return [TAKEN] * len(jobs)
        answers = await evaluator.evaluate(
            [Ask(job.tenant_id, variables_of_message(job), steps) for job in jobs]
        )
        return [decide(steps, answer) for answer in answers]

    def subject(self, job: Job, key: str) -> str:
        """Where the job is published, if `key` is the value of its order key's expression."""
        variables = variables_of_message(job)
        return job_subject(job.tenant_id, self.destination_type, self.order_key, variables, key)


def again(
    job: Job, content: bytes, route: TargetRoute, replay_id: UUID, key: str = ""
) -> Publication:
    """The message that sends a job again. A second one of the same replay is dropped."""
    msg_id = f"{replay_id}-{job.job_id}"
    headers = {REPLAY_HEADER: str(replay_id)}
    return Publication(route.subject(job, key), content, msg_id, headers)


def new_job(job: Job, route: TargetRoute, key: str = "") -> NewJob:
    """A job of a message that had none."""
    return NewJob(
        job.tenant_id,
        job.job_id,
        job.route_id,
        route.destination_type,
        job.model_dump_json().encode(),
        None,
        route.subject(job, key),
    )


def read_job(content: bytes) -> Job | None:
    """The job of a content; None if it cannot be read."""
    try:
        return Job.model_validate_json(content)
    except ValidationError:
        return None


async def find_message(ctx: Context, sequence: int, stored_at: datetime) -> Message | None:
    """A device's message, if the stream still has it.

    Args:
        ctx: of the function.
        sequence: its place in the stream.
        stored_at: when it was stored, to the microsecond: the stream may have been made anew.
    """
    asked = orjson.dumps({"seq": sequence})
    try:
        answer = await ctx.request(f"$JS.API.STREAM.MSG.GET.{TELEMETRY}", asked)
    except RequestFailed:
        return None
    found = orjson.loads(answer.data).get("message")
    if found is None or _ns_of(found["time"]) // _NS_PER_US != _us_of(stored_at):
        return None
    return Message(
        found["subject"],
        base64.b64decode(found.get("data", "")),
        stream=TELEMETRY,
        sequence=sequence,
        stored_at_ns=_ns_of(found["time"]),
    )


def job_of_message(message: Message, route_id: str, tenant_id: str) -> Job | None:
    """The job that ingest makes of a message; None if the message is not the tenant's."""
    try:
        # What ingest has accepted is within its own bound, which a setting may have raised.
        envelope = read_envelope(message, len(message.data))
    except BadEnvelope:
        return None
    if envelope.topic.tenant_id != tenant_id:
        return None
    stored_at = _EPOCH + timedelta(microseconds=message.stored_at_ns // _NS_PER_US)
    return _job(envelope.topic, envelope.payload, job_id(message.origin, route_id), stored_at)


def job_of_row(row: Any, route_id: str, tenant_id: str) -> Job:  # noqa: ANN401 - a row
    """A job of a telemetry row, whose message the stream does not have any more.

    The row has the message's metrics and site, and no other field of its payload.
    """
    topic = Topic(tenant_id, row["device_id"], row["msg_type"])
    payload = {"site_id": row["site_id"], "metrics": orjson.loads(row["metrics"])}
    origin = f"{TELEMETRY}-{row['seq']}-{_us_of(row['time']) * _NS_PER_US}"
    return _job(topic, payload, job_id(origin, route_id), row["time"])


def origin_of(id_of_job: str) -> tuple[int, datetime] | None:
    """Sequence and stored time of the device's message of a job; None for any other job."""
    parts = id_of_job.split("-", _ORIGIN_PARTS)
    if len(parts) <= _ORIGIN_PARTS or parts[0] != TELEMETRY:
        return None
    try:
        return int(parts[1]), _EPOCH + timedelta(microseconds=int(parts[2]) // _NS_PER_US)
    except (ValueError, OverflowError):
        return None


def _job(topic: Topic, payload: dict[str, Any], id_of_job: str, stored_at: datetime) -> Job:
    route_id = id_of_job.split("-", _ORIGIN_PARTS)[_ORIGIN_PARTS]
    return Job(
        job_id=id_of_job,
        route_id=route_id,
        tenant_id=topic.tenant_id,
        device_id=topic.device_id,
        topic=topic.text,
        msg_type=topic.msg_type,
        payload=without_device_secret(payload),
        stored_at=stored_at,
    )


def variables_of_message(job: Job) -> dict[str, Any]:
    """The variables of a filter and of an order key."""
    payload = job.payload if isinstance(job.payload, dict) else {}
    return variables_of(
        payload,
        topic=job.topic,
        tenant_id=job.tenant_id,
        device_id=job.device_id,
        msg_type=job.msg_type,
    )


def _ns_of(text: str) -> int:
    """Nanoseconds since 1970 of an RFC 3339 time, whose fraction `datetime` would cut."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    seconds = int((datetime.fromisoformat(f"{whole}+00:00") - _EPOCH).total_seconds())
    return seconds * _NS + int(fraction.ljust(9, "0")[:9] or "0")


def _us_of(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)


__all__ = [
    "TargetRoute",
    "again",
    "find_message",
    "job_of_message",
    "job_of_row",
    "new_job",
    "origin_of",
    "read_job",
    "variables_of_message",
]
