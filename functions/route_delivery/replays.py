"""Sends jobs again: what a replay asks for, and the held jobs of routes that take jobs again.

A replay runs in small steps on the clock, at its own rate. A step is claimed in the database,
published, and noted; a step that was interrupted is made again under the same message ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID, uuid4

import orjson
from pydantic import BaseModel, ConfigDict, Field

from functions.domain.delivery_counts import DeliveryCounts, counts_of_tenants
from functions.domain.evaluation.evaluator import Evaluator
from functions.domain.named_sql import read_queries
from functions.domain.outbox import NewJob, add_jobs
from functions.domain.route_decisions import LATER
from functions.route_delivery.job import Job
from functions.route_delivery.jobs_again import (
    TargetRoute,
    again,
    find_message,
    job_of_message,
    job_of_row,
    new_job,
    origin_of,
    read_job,
)
from runtime import Context, Publication, Unsendable

_QUERIES = read_queries(Path(__file__).with_name("replays.sql"))
EVERY_S = 2
"""Time between two steps, as the manifest has it."""
_REPLAYS = 20
_MAX_STEP = 1000
_PAGE = 200
_MAX_EXAMINED = 10_000
_DEVICE_LEVEL = 3


class ReplaySettings(BaseModel):
    """Settings of replays.

    Attributes:
        released: the most held jobs that are sent in one run.
        max_waiting_bytes: while so many bytes of a tenant's jobs wait, its replays make no more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    released: Annotated[int, Field(ge=1, le=10_000)] = 2000
    max_waiting_bytes: Annotated[int, Field(ge=1_000, le=10**15)] = 256_000_000


# The name under which the host looks for a function's settings.
Settings = ReplaySettings


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a replay is; `cursor` is its place in the phase."""

    phase: str
    cursor: list[Any] | None
    sent: int
    examined: int
    lost: int
    status: str = "running"


async def start(ctx: Context) -> Evaluator:
    """What evaluates the filters and order keys of the routes."""
    return Evaluator(ctx.log)


async def stop(ctx: Context) -> None:
    """End the process of the filters."""
    await ctx.state.close()


async def run_replays(ctx: Context) -> None:
    """Make a step of every replay that is due, and release held jobs."""
    await release_held(ctx)
    failures: list[Exception] = []
    for row in await ctx.postgres.fetch(_QUERIES["begin_replays"], _REPLAYS):
        try:
            await _step(ctx, row)
        except Exception as failure:  # noqa: BLE001 - the other replays must not wait for it
            failures.append(failure)
    if failures:
        raise failures[0]


async def release_held(ctx: Context) -> None:
    """Send the held jobs of routes that take jobs again, or that were deleted."""
    release = uuid4()
    rows = await ctx.postgres.fetch(_QUERIES["claim_held"], release, ctx.settings.released)
    if not rows:
        return
    rows.sort(key=_place_of)
    found = []
    for row in rows:
        job = read_job(row["content"])
        if job is not None:
            route = TargetRoute.of({**row, "topic_filter": "", "payload_filter": None})
            found.append((job, row["content"], route))
    await ctx.publish_many(await _copies(ctx.state, found, release))
    await ctx.postgres.execute(_QUERIES["end_release"], release)
    ctx.log.info("Held jobs are sent", jobs=len(rows))


async def _step(ctx: Context, row: Any) -> None:  # noqa: ANN401 - a row
    found = await ctx.postgres.fetchrow(_QUERIES["find_route"], row["tenant_id"], row["route_id"])
    cursor = row["cursor"] and orjson.loads(row["cursor"])
    counts = (row["sent"], row["examined"], row["lost"])
    progress = Progress(row["phase"], cursor, *counts)
    route = None if found is None else TargetRoute.of(found)
    if route is None:
        await _note(ctx.postgres, row, replace(progress, status="cancelled"))
    elif row["kind"] == "job":
        await _note(ctx.postgres, row, await _replay_one(ctx, row, route, progress))
    elif row["status"] == "running" and await _has_enough(ctx, row["tenant_id"]):
        await _note(ctx.postgres, row, progress)  # Another run goes on.
    elif row["phase"] == "failed":
        await _note(ctx.postgres, row, await _replay_failed(ctx, row, route, progress))
    else:
        progress = await _replay_missing(ctx, row, route, progress)
    if progress.status != "running":
        ctx.log.info("A replay has ended", replay_id=str(row["replay_id"]))


async def _has_enough(ctx: Context, tenant_id: str) -> bool:
    """Whether as many bytes of the tenant's jobs wait as may wait.

    A replay to an endpoint that has failed again would else fill the stream of all tenants.
    """
    found = await counts_of_tenants(ctx.postgres, [tenant_id])
    settings: ReplaySettings = ctx.settings
    waiting_bytes = found.get(tenant_id, DeliveryCounts()).waiting_bytes
    return waiting_bytes >= settings.max_waiting_bytes


async def _replay_one(ctx: Context, row: Any, route: TargetRoute, progress: Progress) -> Progress:  # noqa: ANN401 - a row
    claimed = await ctx.postgres.fetch(
        _QUERIES["claim_one"], row["tenant_id"], row["job_id"], row["replay_id"]
    )
    return await _send(ctx, row, route, claimed, replace(progress, status="done"))


async def _replay_failed(
    ctx: Context,
    row: Any,  # noqa: ANN401 - a row
    route: TargetRoute,
    progress: Progress,
) -> Progress:
    """Send the next jobs that failed; then the messages without a job, if they are asked for."""
    limit = min(_MAX_STEP, row["rate_per_s"] * EVERY_S)
    is_cancelled = row["status"] == "cancelling"
    after: tuple[datetime | None, str | None] = (None, None)
    if progress.cursor is not None:
        after = (datetime.fromisoformat(progress.cursor[0]), progress.cursor[1])
    claimed = await ctx.postgres.fetch(
        _QUERIES["claim_undelivered"],
        *(row["tenant_id"], row["route_id"], row["since"], row["until"], *after),
        *(row["replay_id"], limit, is_cancelled),
    )
    claimed.sort(key=_place_of)
    done = await _send(ctx, row, route, claimed, progress)
    if len(claimed) == limit:
        last = claimed[-1]
        return replace(done, cursor=[last["made_at"].isoformat(), last["job_id"]])
    if is_cancelled:
        return replace(done, status="cancelled")
    if row["kind"] == "recover":
        return replace(done, phase="missing", cursor=None)
    return replace(done, status="done")


async def _send(
    ctx: Context,
    row: Any,  # noqa: ANN401 - a row
    route: TargetRoute,
    claimed: Sequence[Any],
    progress: Progress,
) -> Progress:
    found: list[tuple[Job, bytes, TargetRoute]] = []
    lost: list[str] = []
    for each in claimed:
        content: bytes | None = each["content"]
        if content is None:
            rebuilt = await _rebuild(ctx, row["tenant_id"], each["job_id"])
            content = rebuilt.model_dump_json().encode() if rebuilt else None
        job = read_job(content) if content else None
        if content and job:
            found.append((job, content, route))
        else:
            lost.append(each["job_id"])
    copies = await _copies(ctx.state, found, row["replay_id"])
    too_large = await _publish(ctx, copies)
    lost += [
        job.job_id for (job, _, _), copy in zip(found, copies, strict=True) if copy in too_large
    ]
    if lost:
        names = (row["tenant_id"], lost, row["replay_id"])
        await ctx.postgres.execute(_QUERIES["give_up"], *names)
    sent = len(copies) - len(too_large)
    return replace(progress, sent=progress.sent + sent, lost=progress.lost + len(lost))


async def _publish(ctx: Context, copies: Sequence[Publication]) -> list[Publication]:
    """Publish copies in order; the result are those that no server takes, with their headers."""
    if not copies:
        return []
    try:
        await ctx.publish_many(copies)
    except Unsendable:
        too_large = []
        for copy in copies:  # What is stored already is a duplicate.
            try:
                await ctx.publish_many([copy])
            except Unsendable:
                too_large.append(copy)
        return too_large
    return []


async def _rebuild(ctx: Context, tenant_id: str, id_of_job: str) -> Job | None:
    """The job of a device's message, from the stream or from its row."""
    origin = origin_of(id_of_job)
    if origin is None:
        return None
    sequence, stored_at = origin
    route_id = id_of_job.split("-", 3)[3]
    message = await find_message(ctx, sequence, stored_at)
    if message is not None:
        return job_of_message(message, route_id, tenant_id)
    row = await ctx.postgres.fetchrow(_QUERIES["find_row"], tenant_id, stored_at, sequence)
    if row is None:
        return None
    return job_of_row(row, route_id, tenant_id).model_copy(update={"job_id": id_of_job})


async def _replay_missing(
    ctx: Context,
    row: Any,  # noqa: ANN401 - a row
    route: TargetRoute,
    progress: Progress,
) -> Progress:
    """Make jobs of accepted messages that match and have none, page by page."""
    if row["status"] == "cancelling":
        progress = replace(progress, status="cancelled")
        await _note(ctx.postgres, row, progress)
        return progress
    limit = min(_MAX_STEP, row["rate_per_s"] * EVERY_S)
    sent_before, examined_before = progress.sent, progress.examined
    while (
        progress.status == "running"
        and progress.sent - sent_before < limit
        and progress.examined - examined_before < _MAX_EXAMINED
    ):
        before, progress = progress, await _make_missing(ctx, row, route, progress)
        if progress == before:
            break
    return progress


async def _make_missing(
    ctx: Context,
    row: Any,  # noqa: ANN401 - a row
    route: TargetRoute,
    progress: Progress,
) -> Progress:
    after: tuple[Any, ...] = (None, None, None)
    if progress.cursor is not None:
        device_id, time, sequence = progress.cursor
        after = (device_id, datetime.fromisoformat(time), sequence)
    rows = await ctx.postgres.fetch(
        _QUERIES["find_rows"],
        *(row["tenant_id"], row["route_id"], row["since"], row["until"], *after),
        *(_only_device(route.topic_filter), _PAGE),
    )
    is_last = len(rows) < _PAGE
    jobs = [
        (place, job)
        for place, one in enumerate(rows)
        if not one["has_job"] and (job := await _job_of(ctx, one, route, row["tenant_id"]))
    ]
    decisions = await route.decide(ctx.state, [job for _, job in jobs])
    new: list[NewJob] = []
    lost = 0
    for (place, job), decision in zip(jobs, decisions, strict=True):
        if decision.code in LATER:
            # The tenant has used up its time: the next step goes on with this message.
            rows, is_last = rows[:place], False
            break
        if decision.verdict == "taken":
            new.append(new_job(job, route, decision.key))
        lost += decision.verdict == "undecided"
    done = replace(
        progress,
        sent=progress.sent + len(new),
        examined=progress.examined + len(rows),
        lost=progress.lost + lost,
        status="done" if is_last else "running",
    )
    if rows:
        last = rows[-1]
        done = replace(done, cursor=[last["device_id"], last["time"].isoformat(), last["seq"]])
    # Together: the jobs are made once, and the outbox publishes them.
    async with ctx.postgres.acquire() as connection, connection.transaction():
        await add_jobs(connection, new)
        await _note(connection, row, done)
    return done


async def _job_of(ctx: Context, row: Any, route: TargetRoute, tenant_id: str) -> Job | None:  # noqa: ANN401 - a row
    """The job of a telemetry row; None if it is not on the route's topics."""
    job = job_of_row(row, route.route_id, tenant_id)
    if not route.accepts_topic(job.topic):
        return None
    # The message may have fields that the row has not, which the filter reads and receivers get.
    message = await find_message(ctx, row["seq"], row["time"])
    whole = message and job_of_message(message, route.route_id, tenant_id)
    return whole or job


async def _copies(
    evaluator: Evaluator, found: Sequence[tuple[Job, bytes, TargetRoute]], replay_id: UUID
) -> list[Publication]:
    """The messages that send jobs again, in order.

    A job whose order key is not evaluated, as its tenant has used up its time, has the empty key.
    """
    copies: list[Publication] = []
    for route, group in groupby(found, lambda each: each[2]):
        of_route = list(group)
        jobs = [job for job, _, _ in of_route]
        decisions = await route.decide(evaluator, jobs, filtered=False)
        copies += [
            again(job, content, route, replay_id, decision.key)
            for (job, content, _), decision in zip(of_route, decisions, strict=True)
        ]
    return copies


def _place_of(row: Any) -> tuple[datetime, int, str]:  # noqa: ANN401 - a row
    """The place of a job among those of its route, as the statements order them."""
    return row["made_at"], len(row["job_id"]), row["job_id"]


def _only_device(topic_filter: str) -> str | None:
    """The device that a topic filter names; None if it accepts several."""
    levels = topic_filter.split("/")
    level = levels[_DEVICE_LEVEL] if len(levels) > _DEVICE_LEVEL else "#"
    return None if level in {"+", "#"} or "#" in levels[:_DEVICE_LEVEL] else level


async def _note(executor: Any, row: Any, progress: Progress) -> None:  # noqa: ANN401 - pool or connection
    cursor = None if progress.cursor is None else orjson.dumps(progress.cursor).decode()
    await executor.execute(
        _QUERIES["end_run"],
        *(row["tenant_id"], row["replay_id"], progress.phase, cursor),
        *(progress.sent, progress.examined, progress.lost, progress.status),
    )


__all__ = ["ReplaySettings", "Settings", "release_held", "run_replays", "start", "stop"]
