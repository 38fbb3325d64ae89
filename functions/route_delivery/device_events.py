"""Makes jobs of devices' events for the routes that want them."""

from collections.abc import Sequence
from datetime import UTC
from pathlib import Path
from typing import Any

from functions.domain.device_events import LEVELS, DeviceEvent, takes_event
from functions.domain.evaluation.evaluator import Evaluator
from functions.domain.identifiers import job_id
from functions.domain.named_sql import read_queries
from functions.domain.outbox import NewJob, add_jobs
from functions.domain.route_decisions import LATER
from functions.route_delivery.job import Job
from functions.route_delivery.jobs_again import TargetRoute, new_job
from runtime import Batch, Context, Event, Retry

_QUERIES = read_queries(Path(__file__).with_name("device_events.sql"))
_MAX_ROUTES = 100


async def start(ctx: Context) -> Evaluator:
    """What evaluates the filters of the routes."""
    return Evaluator(ctx.log)


async def stop(ctx: Context[Evaluator]) -> None:
    """End the process of the filters."""
    await ctx.state.close()


async def route_device_events(batch: Batch[DeviceEvent], ctx: Context[Evaluator]) -> None:
    """Make a job for each route of the tenant whose topic filter names the events and accepts one.

    Of one event and route there is one job for ever, however often the event is stored. A tenant
    has at most 100 such routes that count, the oldest first. An event of another tenant than its
    subject's is rejected; one that no filter can judge now is retried.
    """
    tenants = sorted({event.data.tenant_id for event in batch})
    rows = await ctx.postgres.fetch(_QUERIES["routes"], tenants, sorted(LEVELS), _MAX_ROUTES)
    # By their ids: an event may be stored twice.
    jobs: dict[str, NewJob] = {}
    for event in batch:
        found = event.data
        if event.subject != found.subject:
            batch.reject(
                event, "TENANT_MISMATCH", "the event names another device than its subject"
            )
            continue
        routes = [
            row
            for row in rows
            if row["tenant_id"] == found.tenant_id and takes_event(row["topic_filter"], found)
        ]
        try:
            jobs |= {job.job_id: job for job in await _jobs_of(event, routes, ctx)}
        except Retry as later:
            batch.retry(event, later.reason)
    if jobs:
        async with ctx.postgres.acquire() as connection, connection.transaction():
            await add_jobs(connection, list(jobs.values()))


async def _jobs_of(
    event: Event[DeviceEvent], routes: Sequence[Any], ctx: Context[Evaluator]
) -> list[NewJob]:
    found, jobs = event.data, []
    for row in routes:
        job = Job(
            job_id=job_id(found.event_id, row["route_id"]),
            route_id=row["route_id"],
            tenant_id=found.tenant_id,
            device_id=found.device_id,
            topic=found.topic,
            msg_type=found.kind,
            payload=found.payload,
            stored_at=found.at.astimezone(UTC),
        )
        route = TargetRoute.of(row)
        [decision] = await route.decide(ctx.state, [job])
        if decision.code in LATER:
            raise Retry(decision.reason)
        if decision.verdict == "undecided":
            text = "A route's filter was not evaluated, so the route did not get an event"
            ctx.log.warning(text, route_id=row["route_id"], code=decision.code)
        if decision.verdict == "taken":
            jobs.append(new_job(job, route, decision.key))
    return jobs


__all__ = ["route_device_events", "start", "stop"]
