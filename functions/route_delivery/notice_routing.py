"""Makes jobs of notices for the routes that want them."""

from datetime import UTC
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from functions.domain.identifiers import TenantId, job_id
from functions.domain.named_sql import read_queries
from functions.domain.notices import is_notice_topic, notice_topic
from functions.domain.topic_filters import topic_matches
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
from runtime import Context, Event, Reject, Retry

_QUERIES = read_queries(Path(__file__).with_name("notice_routing.sql"))

# The name under which the host looks for a function's settings.
Settings = PlatformJobSettings


class PublishedNotice(BaseModel):
    """A notice as the stream holds it."""

    model_config = ConfigDict(frozen=True)

    notice_id: str
    tenant_id: TenantId
    kind: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,32}$")]
    is_routed: bool = True
    data: dict[str, Any]


async def route_notices(event: Event[PublishedNotice], ctx: Context[PlatformJobs]) -> None:
    """Make a job for each route of the tenant whose topic filter begins with its notices' topic.

    Raises:
        Reject: the tenant is not the subject's.
        Retry: the tenant's filters have used up their time.
    """
    notice = event.data
    if event.subject != f"notices.{notice.tenant_id}.{notice.kind}":
        raise Reject("TENANT_MISMATCH", "the notice names another tenant or kind than its subject")
    if not notice.is_routed:
        return
    topic = notice_topic(notice.tenant_id, notice.kind)
    payload = {"notice_id": notice.notice_id, "kind": notice.kind, **notice.data}

    def job_for(route_id: str) -> Job:
        return Job(
            job_id=job_id(event.message.origin, route_id),
            route_id=route_id,
            tenant_id=notice.tenant_id,
            topic=topic,
            msg_type=notice.kind,
            payload=payload,
            stored_at=event.stored_at.astimezone(UTC),
        )

    rows = await ctx.postgres.fetch(_QUERIES["routes"], notice.tenant_id, MAX_ROUTES)
    routes = [TargetRoute.of(row) for row in rows if _is_for_notices(row["topic_filter"], topic)]
    [made] = await ctx.state.make([JobSource(routes, job_for, len(event.message.data))], ctx)
    if isinstance(made, Retry):
        raise made
    await ctx.state.add(made, ctx)


def _is_for_notices(topic_filter: str, topic: str) -> bool:
    """Whether a route wants the notice. `#` alone does not: who asks for messages gets none."""
    return is_notice_topic(topic_filter) and topic_matches(topic_filter, topic)


__all__ = ["PublishedNotice", "Settings", "route_notices", "start", "stop"]
