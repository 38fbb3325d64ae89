"""Decisions on the jobs of a message and of a tenant."""

import structlog

from functions.domain.delivery_counts import DeliveryCounts
from functions.domain.job_bounds import (
    TENANT_BACKLOG_FULL,
    TOO_MANY_JOBS,
    JobBounds,
    JobLimits,
    Judged,
)
from functions.domain.outbox import NewJob

LIMITS = JobLimits(per_message=3, waiting_bytes=1000, given_up_bytes=3450)
OK, FULL, MANY = Judged(), Judged(TENANT_BACKLOG_FULL), Judged(TOO_MANY_JOBS)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def bounds(clock: Clock | None = None) -> JobBounds:
    return JobBounds(LIMITS, structlog.stdlib.get_logger(), clock or Clock())


def refused(code: str, tenant: str = "t") -> NewJob:
    return NewJob(tenant, "j", "r", "webhook", b"{}", code, None)


def test_a_message_has_a_bounded_number_of_jobs() -> None:
    mine = bounds()
    assert [mine.judge("t", place, 1) for place in range(5)] == [OK, OK, OK, MANY, MANY]
    assert mine.judge("t", 0, 1) == OK


def test_a_tenants_waiting_bytes_are_bounded_and_the_others_are_not_concerned() -> None:
    mine = bounds()
    assert [mine.judge("t", 0, 400) for _ in range(3)] == [OK, OK, FULL]
    assert mine.judge("t", 0, 200) == OK, "a smaller one fits"
    assert mine.judge("other", 0, 1000) == OK


def test_what_the_database_says_replaces_what_was_counted_here() -> None:
    mine = bounds()
    assert mine.judge("t", 0, 1000) == OK
    mine.learn("t", DeliveryCounts(waiting_bytes=100), 0.0)
    assert mine.judge("t", 0, 900) == OK
    mine.learn("t", DeliveryCounts(waiting_bytes=999), 0.0)
    assert mine.judge("t", 0, 2) == FULL


def test_dead_letters_of_refused_jobs_are_bounded_too() -> None:
    mine = bounds()
    mine.learn("t", DeliveryCounts(waiting_bytes=1000, given_up_bytes=250), 0.0)
    judged = [mine.judge("t", 0, 100) for _ in range(3)]
    assert [one.leaves_letter for one in judged] == [True, True, False]
    assert {one.refusal for one in judged} == {TENANT_BACKLOG_FULL}


async def test_the_database_is_asked_for_a_tenant_at_most_once_a_second() -> None:
    clock = Clock()
    mine = bounds(clock)
    asked: list[list[str]] = []

    class Database:
        async def fetch(self, query: str, *values: list[str]) -> list[tuple[object, ...]]:
            asked.extend(values)
            return [("a", 1, 1, 0, 0, 0, 1000, 0)]

    for now_s in (0.0, 0.9, 1.5):
        clock.now_s = now_s
        await mine.refresh(Database(), ["b", "a"])  # type: ignore[arg-type]
    assert asked == [["a", "b"], ["a", "b"]]
    assert mine.judge("a", 0, 1) == FULL
    assert mine.judge("b", 0, 1) == OK


def test_a_tenant_is_told_once_an_hour_and_not_before_the_commit() -> None:
    mine = bounds()
    jobs = [refused(TOO_MANY_JOBS), refused(TOO_MANY_JOBS), refused(TENANT_BACKLOG_FULL, "u")]
    first = mine.notices(jobs)
    assert [(one.tenant_id, one.kind, one.data["code"]) for one in first] == [
        ("t", "jobs_refused", TOO_MANY_JOBS),
        ("u", "jobs_refused", TENANT_BACKLOG_FULL),
    ]
    assert mine.notices(jobs) == first
    mine.told(first)
    assert mine.notices(jobs) == []
