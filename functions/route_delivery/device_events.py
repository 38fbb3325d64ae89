"""Makes jobs of devices' events for the routes that want them."""

from collections.abc import Collection
from datetime import UTC
from functools import partial
from pathlib import Path

from functions.domain.device_events import LEVELS, DeviceEvent, takes_event
from functions.domain.identifiers import job_id
from functions.domain.named_sql import read_queries
from functions.domain.outbox import NewJob
from functions.route_delivery.job import Job
from functions.route_delivery.jobs_again import TargetRoute
from functions.route_delivery.platform_jobs import (
    MAX_ROUTES,
    JobSource,
    PlatformJobs,
    PlatformJobSettings,
    start,
    stop,
)
from runtime import Batch, Context, Event, Retry

_QUERIES = read_queries(Path(__file__).with_name("device_events.sql"))

# The name under which the host looks for a function's settings.
Settings = PlatformJobSettings


async def route_device_events(batch: Batch[DeviceEvent], ctx: Context[PlatformJobs]) -> None:
    """Make a job for each route of the tenant whose topic filter names the events and accepts one.

    Of one event and route there is one job for ever, however often the event is stored. A tenant
    has at most 100 such routes that count, the oldest first. An event of another tenant than its
    subject's is rejected; one that no filter can judge now is retried.
    """
    events: list[Event[DeviceEvent]] = []
    for event in batch:
        if event.subject == event.data.subject:
            events.append(event)
        else:
            text = "the event names another device than its subject"
            batch.reject(event, "TENANT_MISMATCH", text)
    routes = await _find_routes({event.data.tenant_id for event in events}, ctx)
    sources = [
        JobSource(
            [
                route
                for route in routes.get(event.data.tenant_id, ())
                if takes_event(route.topic_filter, event.data)
            ],
            partial(_job, event.data),
            len(event.message.data),
        )
        for event in events
    ]
    # By their ids: an event may be stored twice.
    jobs: dict[str, NewJob] = {}
    for event, made in zip(events, await ctx.state.make(sources, ctx), strict=True):
        if isinstance(made, Retry):
            batch.retry(event, made.reason)
        else:
            jobs |= {job.job_id: job for job in made}
    await ctx.state.add(list(jobs.values()), ctx)


async def _find_routes(
    tenants: Collection[str], ctx: Context[PlatformJobs]
) -> dict[str, list[TargetRoute]]:
    """By tenant, the enabled routes whose topic filters name events, the oldest first."""
    rows = await ctx.postgres.fetch(_QUERIES["routes"], sorted(tenants), sorted(LEVELS), MAX_ROUTES)
    routes: dict[str, list[TargetRoute]] = {}
    for row in rows:
        routes.setdefault(row["tenant_id"], []).append(TargetRoute.of(row))
    return routes


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
