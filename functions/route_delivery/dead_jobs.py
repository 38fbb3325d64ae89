"""Notes which jobs were given up. Only the host knows it: it counts attempts and sees crashes."""

from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from functions.domain.identifiers import TenantId
from functions.domain.named_sql import read_queries
from functions.domain.notices import add_notice
from functions.route_delivery.given_up import (
    GivenUp,
    LastAttempt,
    first_of_routes,
    make_notice,
)
from functions.route_delivery.job import Job, JobId
from runtime import Batch, Context, Message

_QUERIES = read_queries(Path(__file__).with_name("dead_jobs.sql"))
_STREAM, _SUBJECT, _CODE = "Runtime-Stream", "Runtime-Subject", "Runtime-Code"
_CODE_CHARACTERS = 64
_JOBS = "ROUTES"


class _DeadJob(BaseModel):
    """What is read of a dead letter's job."""

    model_config = ConfigDict(frozen=True)

    job_id: JobId
    tenant_id: TenantId


async def record_dead_jobs(batch: Batch[bytes], ctx: Context) -> None:
    """Mark the jobs of the dead letters as dead, and tell their tenants."""
    letters = [event.message for event in batch]
    dead = sorted({found for letter in letters if (found := read_dead_job(letter))})
    if not dead:
        return
    firsts = first_of_routes([job for letter in letters if (job := read_given_up(letter))])
    async with ctx.postgres.acquire() as connection, connection.transaction():
        await connection.execute(_QUERIES["mark_dead"], *map(list, zip(*dead, strict=True)))
        rows = await connection.fetch(
            _QUERIES["last_attempts"],
            [one.job.tenant_id for one, _ in firsts],
            [one.job.job_id for one, _ in firsts],
        )
        last = {row[:2]: LastAttempt(*row[2:]) for row in map(tuple, rows)}
        for one, count in firsts:
            attempt = last.get((one.job.tenant_id, one.job.job_id))
            notice = make_notice(one, attempt, count=count, now=datetime.now(UTC))
            await add_notice(connection, notice)


def read_given_up(letter: Message) -> GivenUp | None:
    """The job of a dead letter, with its payload; None as for `read_dead_job`."""
    if read_dead_job(letter) is None:
        return None
    try:
        job = Job.model_validate_json(letter.data)
    except ValidationError:
        return None
    return GivenUp(job, letter.headers.get(_CODE, "")[:_CODE_CHARACTERS])


def read_dead_job(letter: Message) -> tuple[str, str] | None:
    """The tenant and id of a dead letter's job.

    None for what is no job, and for a job that its subject's tenant did not send.
    """
    subject = letter.headers.get(_SUBJECT, "").split(".")
    if letter.headers.get(_STREAM) != _JOBS:
        return None
    try:
        job = _DeadJob.model_validate_json(letter.data)
    except ValidationError:
        return None
    return (job.tenant_id, job.job_id) if subject[1:2] == [job.tenant_id] else None


__all__ = ["read_dead_job", "read_given_up", "record_dead_jobs"]
