import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
import structlog

from functions.domain.envelope import Envelope
from functions.domain.outbox import NewJob
from functions.domain.registry import RegisteredDevice, RegisteredRoute, TenantRoutes
from functions.domain.route_decisions import Decision
from functions.ingest.checks import Accepted, Verdict
from functions.ingest.jobs import Candidate, JobMaker
from functions.ingest.plan import Judge, Known, Plan, Settled, make_plan, read_telemetry, stored_at
from runtime import Message
from tests.support.evaluation import EvaluatorHere

KNOWN = Known(
    {("t", "d"): RegisteredDevice("s1")},
    {"t": TenantRoutes([RegisteredRoute("r1", "#", "webhook")])},
)


class FailingJobs(JobMaker):
    """A job maker with a defect that fails on one message."""

    def make_of(
        self, candidate: Candidate, variables: dict[str, Any], decisions: Sequence[Decision]
    ) -> list[NewJob]:
        if candidate.message.sequence == 2:
            raise ZeroDivisionError
        return super().make_of(candidate, variables, decisions)


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
    made = make_plan(read, KNOWN, settled, judge)
    maker = jobs(structlog.stdlib.get_logger(), EvaluatorHere())
    made.add_jobs(asyncio.run(maker.make(made.candidates)))
    return made


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


def test_what_has_its_row_already_has_its_jobs_too_and_is_left_alone() -> None:
    second = messages()[1]
    made = plan(Settled(written={(second.sequence, stored_at(second))}), jobs=FailingJobs)
    assert [row.seq for row in made.rows] == [1, 3]
    assert [message.sequence for message, _ in made.jobs] == [1, 3]
    assert not made.refused
