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
from typing import Any, Literal, TypeAlias
from uuid import UUID

from functions.route_delivery.job import Job, route_key
from functions.route_delivery.journal import Attempt, FoundRoute, Journal, Wanted
from runtime import Context, Event, Reject, Retry

_LONG_WAIT_S = 300.0

Outcome = Literal["delivered", "failed", "refused", "skipped"]
_JOB_STATUS: dict[Outcome, str] = {
    "delivered": "delivered",
    "failed": "failing",
    "refused": "refused",
}


@dataclass(frozen=True, slots=True)
class Receipt:
    """The result of one attempt.

    Attributes:
        outcome: `failed` is tried again, `refused` never. `skipped` means that nothing was tried,
            since it is too early: it uses up no attempt and is not logged.
        code: reason code in upper snake case; empty when delivered.
        reason: one sentence for a person, without secrets and internals.
        retry_after_s: seconds to wait, as the endpoint asked; of a skipped job, until it is tried.
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
    event: Event[Job], ctx: Context[Any], journal: Journal, send: Send, *, destination_type: str
) -> None:
    """Deliver a job with `send`, unless it is delivered already.

    Raises:
        Reject: the attempt was refused, or the route is deleted, disabled or of another type now.
        Retry: the attempt failed, or it is too early for one.
    """
    job = event.data
    if event.subject.split(".")[1:2] != [job.tenant_id]:
        # Check this first: the log must hold nothing under a tenant that did not send the job.
        raise Reject("TENANT_MISMATCH", "the job names another tenant than its subject")
    key = route_key(job.route_id)
    route = await journal.find(Wanted(job.tenant_id, key, job.job_id)) if key else None
    if route is not None and route.is_delivered:
        ctx.log.debug("the job is delivered already", job_id=job.job_id)
        return
    started_at, started_s = datetime.now(UTC), time.monotonic()
    if isinstance(usable := _check_route(route, destination_type), Receipt):
        receipt = usable
    else:
        receipt = await send(job, Destination(job.route_id, usable.destination_config))
    if receipt.outcome == "skipped":
        raise Retry(
            f"{receipt.code}: {receipt.reason}", delay_s=receipt.retry_after_s, counts=False
        )
    await journal.record(
        Attempt(
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
            *_gone(receipt, key, route),
        )
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
    answers each attempt with `Retry-After: 1` would make a dead letter within minutes, while the
    policy retries for a day. So after the first attempt only a long wait is used.
    """
    wait_s = receipt.retry_after_s
    return None if attempt > 1 and (wait_s or 0.0) < _LONG_WAIT_S else wait_s


def _check_route(route: FoundRoute | None, destination_type: str) -> FoundRoute | Receipt:
    """The route, or why no attempt is made."""
    if route is None:
        return Receipt("refused", "ROUTE_GONE", "the job's route does not exist")
    if not route.is_enabled:
        return Receipt("refused", "ROUTE_DISABLED", "the job's route is disabled")
    if route.destination_type != destination_type:
        return Receipt("refused", "ROUTE_TYPE_CHANGED", "the job's route is of another type now")
    return route


def _gone(
    receipt: Receipt, key: UUID | None, route: FoundRoute | None
) -> tuple[UUID | None, str | None]:
    if not receipt.disables_route or route is None:
        return None, None
    return key, route.destination_config
