"""Publishes notices to tenants, and makes jobs of them for the routes that want them."""

from datetime import UTC
from pathlib import Path
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field

from functions.domain.evaluation.evaluator import Evaluator
from functions.domain.identifiers import TenantId, job_id
from functions.domain.named_sql import read_queries
from functions.domain.notices import is_notice_topic, notice_topic
from functions.domain.outbox import add_jobs
from functions.domain.route_decisions import LATER
from functions.domain.topic_filters import topic_matches
from functions.route_delivery.job import Job
from functions.route_delivery.jobs_again import TargetRoute, new_job
from runtime import Context, Event, Publication, Reject, Retry

_QUERIES = read_queries(Path(__file__).with_name("notices.sql"))
_AT_A_TIME = 500
_MAX_ROUTES = 100


class NoticeSettings(BaseModel):
    """Settings of the publication of notices.

    Attributes:
        keep_days: how long the API shows a notice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_days: Annotated[int, Field(ge=1, le=3650)] = 30


# The name under which the host looks for a function's settings.
Settings = NoticeSettings


class PublishedNotice(BaseModel):
    """A notice as the stream holds it."""

    model_config = ConfigDict(frozen=True)

    notice_id: str
    tenant_id: TenantId
    kind: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,32}$")]
    is_routed: bool = True
    data: dict[str, Any]


async def start(ctx: Context) -> Evaluator:
    """What evaluates the filters of the routes."""
    return Evaluator(ctx.log)


async def stop(ctx: Context) -> None:
    """End the process of the filters."""
    await ctx.state.close()


async def publish_notices(ctx: Context) -> None:
    """Store the notices that are not in the stream yet, and forget old ones.

    A crash between the two statements stores a notice twice, under the same `notice_id`.
    """
    published = _AT_A_TIME
    while published == _AT_A_TIME:
        rows = await ctx.postgres.fetch(_QUERIES["unpublished"], _AT_A_TIME)
        if not rows:
            break
        await ctx.publish_many([_publication(row) for row in rows])
        await ctx.postgres.execute(_QUERIES["mark"], [row["notice_id"] for row in rows])
        published = len(rows)
    await ctx.postgres.execute(_QUERIES["forget_old"], ctx.settings.keep_days, _AT_A_TIME)


async def route_notices(event: Event[PublishedNotice], ctx: Context) -> None:
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
    rows = await ctx.postgres.fetch(_QUERIES["routes"], notice.tenant_id, _MAX_ROUTES)
    new = []
    for row in rows:
        if not _is_for_notices(row["topic_filter"], topic):
            continue
        job = Job(
            job_id=job_id(event.message.origin, row["route_id"]),
            route_id=row["route_id"],
            tenant_id=notice.tenant_id,
            topic=topic,
            msg_type=notice.kind,
            payload=payload,
            stored_at=event.stored_at.astimezone(UTC),
        )
        route = TargetRoute.of(row)
        [decision] = await route.decide(ctx.state, [job])
        if decision.code in LATER:
            raise Retry(decision.reason)
        if decision.verdict == "undecided":
            text = "A route's filter was not evaluated, so the route did not get a notice"
            ctx.log.warning(text, route_id=row["route_id"], code=decision.code)
        if decision.verdict == "taken":
            new.append(new_job(job, route, decision.key))
    if new:
        async with ctx.postgres.acquire() as connection, connection.transaction():
            await add_jobs(connection, new)


def _is_for_notices(topic_filter: str, topic: str) -> bool:
    """Whether a route wants the notice. `#` alone does not: who asks for messages gets none."""
    return is_notice_topic(topic_filter) and topic_matches(topic_filter, topic)


def _publication(row: Any) -> Publication:  # noqa: ANN401 - a row
    notice_id = str(row["notice_id"])
    body = {
        "notice_id": notice_id,
        "tenant_id": row["tenant_id"],
        "kind": row["kind"],
        "is_routed": row["is_routed"],
        "data": orjson.loads(row["data"]) | {"created_at": row["created_at"]},
    }
    subject = f"notices.{row['tenant_id']}.{row['kind']}"
    return Publication(subject, orjson.dumps(body), msg_id=notice_id)
