"""Makes jobs of devices' events for the routes that want them."""

from datetime import UTC
from functools import partial
from pathlib import Path

from functions.domain.device_events import LEVELS, DeviceEvent, takes_event
from functions.domain.identifiers import job_id
from functions.domain.named_sql import read_queries
from functions.domain.outbox import NewJob
from functions.route_delivery.job import Job
from functions.route_delivery.platform_jobs import (
    MAX_ROUTES,
    PlatformJobs,
    PlatformJobSettings,
    start,
    stop,
)
from runtime import Batch, Context, Retry

_QUERIES = read_queries(Path(__file__).with_name("device_events.sql"))

# The name under which the host looks for a function's settings.
Settings = PlatformJobSettings


async def route_device_events(batch: Batch[DeviceEvent], ctx: Context[PlatformJobs]) -> None:
    """Make a job for each route of the tenant whose topic filter names the events and accepts one.

    Of one event and route there is one job for ever, however often the event is stored. A tenant
    has at most 100 such routes that count, the oldest first. An event of another tenant than its
    subject's is rejected; one that no filter can judge now is retried.
    """
    tenants = sorted({event.data.tenant_id for event in batch})
    rows = await ctx.postgres.fetch(_QUERIES["routes"], tenants, sorted(LEVELS), MAX_ROUTES)
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
            made = await ctx.state.of(routes, partial(_job, found), ctx)
        except Retry as later:
            batch.retry(event, later.reason)
        else:
            jobs |= {job.job_id: job for job in made}
    await ctx.state.add(list(jobs.values()), ctx)


def _job(event: DeviceEvent, route_id: str) -> Job:
    return Job(
        job_id=job_id(event.event_id, route_id),
        route_id=route_id,
        tenant_id=event.tenant_id,
        device_id=event.device_id,
        topic=event.topic,
        msg_type=event.kind,
        payload=event.payload,
        stored_at=event.at.astimezone(UTC),
    )


__all__ = ["Settings", "route_device_events", "start", "stop"]
