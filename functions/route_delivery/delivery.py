"""Delivers a job of any route type: look up the route, send once, log the attempt, settle the job.

The module of a type provides `send`, which makes one attempt and returns its result; an endpoint's
failure is a result and not an exception. Delivery is at least once: when a host dies between an
endpoint's answer and the log, the job is sent again under the same id, so that a receiver can
recognize it.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from functions.domain.named_sql import read_queries
from functions.route_delivery.job import Job, route_key
from runtime import Context, Event, Reject, Retry

_QUERIES = read_queries(Path(__file__).with_name("queries.sql"))
_LONG_WAIT_S = 300.0

Outcome = Literal["delivered", "failed", "refused", "skipped"]
_JOB_STATUS: dict[Outcome, str] = {
    "delivered": "delivered",
    "failed": "failing",
    "skipped": "failing",
    "refused": "refused",
}


@dataclass(frozen=True, slots=True)
class Receipt:
    """The result of one attempt.

    Attributes:
        outcome: `failed` and `skipped` are tried again, `refused` never.
        code: reason code in upper snake case; empty when delivered.
        reason: one sentence for a person, without secrets and internals.
        retry_after_s: seconds to wait, as the endpoint asked.
        disables_route: the endpoint asked for no more deliveries.
    """

    outcome: Outcome
    code: str = ""
    reason: str = ""
    status_code: int | None = None
    excerpt: str | None = None
    retry_after_s: float | None = None
    disables_route: bool = False


@dataclass(frozen=True, slots=True)
class Destination:
    """A route's destination; the module of its type validates the configuration, a JSON text."""

    route_id: str
    config: str


Send: TypeAlias = Callable[[Job, Destination], Awaitable[Receipt]]


async def deliver(
    event: Event[Job], ctx: Context[Any], send: Send, *, destination_type: str
) -> None:
    """Deliver a job with `send`, unless it is delivered already.

    Raises:
        Reject: the attempt was refused, or the route is deleted, disabled or of another type now.
        Retry: the attempt failed.
    """
    job = event.data
    if event.subject.split(".")[1:2] != [job.tenant_id]:
        # Check this first: the log must hold nothing under a tenant that did not send the job.
        raise Reject("TENANT_MISMATCH", "the job names another tenant than its subject")
    route = await ctx.postgres.fetchrow(
        _QUERIES["find_route"], job.tenant_id, route_key(job.route_id), job.job_id
    )
    if route is not None and route["is_delivered"]:
        ctx.log.debug("the job is delivered already", job_id=job.job_id)
        return
    started_at, started_s = datetime.now(UTC), time.monotonic()
    if route is None:
        receipt = Receipt("refused", "ROUTE_GONE", "the job's route does not exist")
    elif not route["is_enabled"]:
        receipt = Receipt("refused", "ROUTE_DISABLED", "the job's route is disabled")
    elif route["destination_type"] != destination_type:
        receipt = Receipt("refused", "ROUTE_TYPE_CHANGED", "the job's route is of another type now")
    else:
        receipt = await send(job, Destination(job.route_id, route["destination_config"]))
    await ctx.postgres.execute(
        _QUERIES["record_attempt"],
        job.tenant_id,
        job.job_id,
        job.route_id,
        destination_type,
        _JOB_STATUS[receipt.outcome],
        started_at,
        round((time.monotonic() - started_s) * 1000),
        receipt.outcome,
        receipt.status_code,
        receipt.code or None,
        receipt.excerpt,
        receipt.disables_route,
    )
    if receipt.outcome == "refused":
        raise Reject(receipt.code, receipt.reason)
    if receipt.outcome != "delivered":
        raise Retry(
            f"{receipt.code}: {receipt.reason}", delay_s=choose_wait_s(receipt, ctx.attempt)
        )


def choose_wait_s(receipt: Receipt, attempt: int) -> float | None:
    """Seconds until the next attempt; None for the delay of the function's retry policy.

    A wait returned here replaces the policy's delay and uses up an attempt. An endpoint that
    answers each attempt with `Retry-After: 1`, or a pause that skips a job each minute, would make
    a dead letter within minutes, while the policy retries for a day. So after the first attempt
    only a long wait that the endpoint asked for is used.
    """
    wait_s = receipt.retry_after_s
    if attempt > 1 and (receipt.outcome == "skipped" or (wait_s or 0.0) < _LONG_WAIT_S):
        return None
    return wait_s
