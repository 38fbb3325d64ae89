"""Bounds on the jobs of one message and of one tenant, so that one dead endpoint fills no disk."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog

from functions.domain.delivery_counts import (
    REFUSED_LETTER_BYTES,
    DeliveryCounts,
    counts_of_tenants,
)
from functions.domain.notices import Notice
from functions.domain.outbox import NewJob
from functions.domain.quarantine import Executor

TOO_MANY_JOBS = "TOO_MANY_JOBS"
TENANT_BACKLOG_FULL = "TENANT_BACKLOG_FULL"
_KNOWN_FOR_S = 1.0
_SAY_EVERY_S = 60.0
_MAX_TENANTS = 10_000
_HOUR_S = 3600
_REASONS = {
    TOO_MANY_JOBS: "more routes took a message than one message may have jobs",
    TENANT_BACKLOG_FULL: "more bytes of jobs wait than a tenant may have",
}


@dataclass(frozen=True, slots=True)
class JobLimits:
    """The bounds.

    Attributes:
        per_message: the most jobs of one message.
        waiting_bytes: the most bytes of a tenant's jobs that wait.
        given_up_bytes: the most bytes of a tenant's refused and dead jobs, up to which a job that
            is refused here leaves a dead letter. Beyond it, the job is only counted.
    """

    per_message: int = 100
    waiting_bytes: int = 256_000_000
    given_up_bytes: int = 64_000_000


@dataclass(frozen=True, slots=True)
class Judged:
    """What becomes of a new job.

    Attributes:
        refusal: the reason code; None for a job to deliver.
        leaves_letter: a refused job gets a dead letter.
    """

    refusal: str | None = None
    leaves_letter: bool = True


_ACCEPTED = Judged()


@dataclass(slots=True)
class _Usage:
    read_at_s: float
    waiting_bytes: int = 0
    given_up_bytes: int = 0


class JobBounds:
    """Judges new jobs by what their tenant has waiting.

    The figures come from the database at most once a second, and grow by what this process makes
    meanwhile. Hosts do not know of each other's last second, so a tenant may exceed its bound by
    what all hosts make within a second.

    Args:
        limits: the bounds.
        log: gets a warning for a tenant that is over a bound, once a minute.
        now_s: a monotonic clock.
    """

    def __init__(
        self,
        limits: JobLimits,
        log: structlog.stdlib.BoundLogger,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._log = log
        self._now_s = now_s
        self._usage: dict[str, _Usage] = {}
        self._said_at_s: dict[tuple[str, str], float] = {}
        self._told: dict[tuple[str, str], int] = {}

    async def refresh(self, executor: Executor, tenants: Iterable[str]) -> None:
        """Read the figures of those of the tenants whose figures are older than a second."""
        now_s = self._now_s()
        stale = {
            tenant
            for tenant in tenants
            if (usage := self._usage.get(tenant)) is None or now_s - usage.read_at_s > _KNOWN_FOR_S
        }
        if not stale:
            return
        found = await counts_of_tenants(executor, stale)
        if len(self._usage) > _MAX_TENANTS:
            self._usage.clear()
        for tenant in stale:
            self.learn(tenant, found.get(tenant, DeliveryCounts()), now_s)

    def learn(self, tenant_id: str, counts: DeliveryCounts, now_s: float) -> None:
        """Take over a tenant's figures."""
        self._usage[tenant_id] = _Usage(now_s, counts.waiting_bytes, counts.given_up_bytes)

    def judge(self, tenant_id: str, place: int, size_bytes: int) -> Judged:
        """Judge a job, and count it.

        Args:
            tenant_id: the job's tenant.
            place: its number among the jobs of its message, from 0.
            size_bytes: its size.
        """
        usage = self._usage.setdefault(tenant_id, _Usage(self._now_s()))
        limits = self._limits
        if place >= limits.per_message:
            code = TOO_MANY_JOBS
        elif usage.waiting_bytes + size_bytes > limits.waiting_bytes:
            code = TENANT_BACKLOG_FULL
        else:
            usage.waiting_bytes += size_bytes
            return _ACCEPTED
        letter_bytes = size_bytes + REFUSED_LETTER_BYTES
        leaves_letter = usage.given_up_bytes + letter_bytes <= limits.given_up_bytes
        usage.given_up_bytes += letter_bytes
        self._say(tenant_id, code)
        return Judged(code, leaves_letter)

    def bounded(self, job: NewJob, place: int = 0) -> NewJob:
        """The job, or the same one refused; see `judge`."""
        judged = self.judge(job.tenant_id, place, len(job.content))
        if judged.refusal is None:
            return job
        subject = job.subject if judged.leaves_letter else None
        return job._replace(refusal=judged.refusal, subject=subject)

    def notices(self, jobs: Iterable[NewJob]) -> list[Notice]:
        """What the tenants of refused jobs are to be told: once an hour for each reason."""
        hour = int(time.time()) // _HOUR_S
        refused = {(job.tenant_id, job.refusal) for job in jobs if job.refusal is not None}
        return [
            Notice(
                tenant_id,
                "jobs_refused",
                f"jobs_refused/{code}/{hour}",
                {
                    "code": code,
                    "reason": _REASONS[code],
                    "max_jobs_per_message": self._limits.per_message,
                    "max_waiting_bytes": self._limits.waiting_bytes,
                },
            )
            for tenant_id, code in sorted(refused)
            if self._told.get((tenant_id, code)) != hour
        ]

    def told(self, notices: Iterable[Notice]) -> None:
        """Remember notices whose transaction is committed."""
        if len(self._told) > _MAX_TENANTS:
            self._told.clear()
        for notice in notices:
            hour = int(notice.key.rpartition("/")[2])
            self._told[(notice.tenant_id, notice.data["code"])] = hour

    def _say(self, tenant_id: str, code: str) -> None:
        now_s = self._now_s()
        said_at_s = self._said_at_s.get((tenant_id, code))
        if said_at_s is not None and now_s - said_at_s < _SAY_EVERY_S:
            return
        if len(self._said_at_s) > _MAX_TENANTS:
            self._said_at_s.clear()
        self._said_at_s[(tenant_id, code)] = now_s
        self._log.warning("New jobs of a tenant are refused", tenant_id=tenant_id, code=code)


__all__ = ["TENANT_BACKLOG_FULL", "TOO_MANY_JOBS", "JobBounds", "JobLimits", "Judged"]
