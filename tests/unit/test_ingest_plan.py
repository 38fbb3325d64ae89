from collections.abc import Sequence
from datetime import datetime

import pytest
import structlog

from functions.domain.envelope import Envelope
from functions.domain.registry import RegisteredDevice, RegisteredRoute, TenantRoutes
from functions.ingest.checks import Accepted, Verdict
from functions.ingest.jobs import JobMaker
from functions.ingest.plan import Judge, Known, Plan, Settled, make_plan, read_telemetry, stored_at
from runtime import Message, Publication

KNOWN = Known(
    {("t", "d"): RegisteredDevice("s1")},
    {"t": TenantRoutes([RegisteredRoute("r1", "#", "webhook")])},
)


class FailingJobs(JobMaker):
    """A job maker with a defect that fails on one message."""

    def make(
        self,
        message: Message,
        envelope: Envelope,
        stored_at: datetime,
        routes: Sequence[RegisteredRoute],
    ) -> list[Publication]:
        if message.sequence == 2:
            raise ZeroDivisionError
        return super().make(message, envelope, stored_at, routes)


def accept(envelope: Envelope, device: RegisteredDevice | None, message: Message) -> Verdict:
    return Accepted("s1", {"temp": 22})


def fail_on_the_second(
    envelope: Envelope, device: RegisteredDevice | None, message: Message
) -> Verdict:
    if message.sequence == 2:
        raise RecursionError
    return accept(envelope, device, message)


def messages() -> list[Message]:
    body = b'{"site_id":"s1"}'
    return [Message("telemetry.t.d", body, stream="TELEMETRY", sequence=n) for n in (1, 2, 3)]


def plan(settled: Settled, *, judge: Judge = accept, jobs: type[JobMaker] = JobMaker) -> Plan:
    read = [(message, read_telemetry(message)) for message in messages()]
    return make_plan(read, KNOWN, settled, judge, jobs(structlog.stdlib.get_logger()))


@pytest.mark.parametrize(
    ("judge", "jobs", "error"),
    [
        (fail_on_the_second, JobMaker, "RecursionError"),
        (accept, FailingJobs, "ZeroDivisionError"),
    ],
)
def test_a_message_that_no_check_foresaw_is_refused_whole_and_alone(
    judge: Judge, jobs: type[JobMaker], error: str
) -> None:
    made = plan(Settled(), judge=judge, jobs=jobs)
    assert [row.seq for row in made.rows] == [1, 3]
    assert [message.sequence for message, _ in made.jobs] == [1, 3]
    assert [(message.sequence, refusal.reason) for message, refusal in made.refused] == [
        (2, f"INGEST_EXCEPTION:{error}")
    ]
    assert made.refused[0][1].topic == ("t", "d", "telemetry")


def test_what_has_its_row_already_is_not_refused_for_a_job_that_cannot_be_made() -> None:
    second = messages()[1]
    settled = Settled(written={(second.sequence, stored_at(second))})
    with pytest.raises(ZeroDivisionError):
        plan(settled, jobs=FailingJobs)
