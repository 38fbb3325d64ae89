"""Delivers a job of any route type: look up the route, send once, log the attempt, settle the job.

The module of a type provides `send`, which makes one attempt and returns its result; an endpoint's
failure is a result, and an exception is a failed attempt too. Delivery is at least once: when a
host dies between an endpoint's answer and the log, the job is sent again under the same id, so that
a receiver can recognize it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeAlias, TypeVar

from pydantic import BaseModel

from functions.domain.delivery_counts import DEAD_LETTER_BYTES, REFUSED_LETTER_BYTES
from functions.domain.evaluation.evaluator import Evaluator
from functions.domain.secret_box import Unreadable
from functions.outbound.admission import SIGNS, Admission
from functions.outbound.receipt import EndpointHealth, Outcome, Receipt, bounded
from functions.outbound.settings import DeliverySettings
from functions.route_delivery.copies import REPLAY_HEADER, is_void_copy
from functions.route_delivery.destinations import (
    DestinationReader,
    EndpointKey,
    ReadDestination,
    Unusable,
)
from functions.route_delivery.excerpt_share import ExcerptShare
from functions.route_delivery.faults_of_send import receipt_without_secrets, without_secrets
from functions.route_delivery.job import Job, route_key
from functions.route_delivery.journal import (
    Attempt,
    FoundRoute,
    HeldJob,
    Journal,
    RouteChange,
    Wanted,
)
from functions.route_delivery.letter_share import LetterShare
from functions.route_delivery.route_options import OptionsReader
from functions.route_delivery.unreadable import UnreadableLog
from runtime import Context, Event, NoAnswer, Reject, Retry, Unavailable

D = TypeVar("D", bound=BaseModel)

Send: TypeAlias = Callable[[Job, D, Context[Any]], Awaitable[Receipt]]

_JOB_STATUS: dict[Outcome, str] = {
    "delivered": "delivered",
    "failed": "failing",
    "refused": "refused",
    "skipped": "refused",  # Of a test alone.
}
_REDRIVES = "Runtime-Redrives"
_TEST_IS_OLD = timedelta(minutes=10)
# What an attempt says of the endpoint, and whether the origin could be connected to.


@dataclass(frozen=True, slots=True)
class Delivery(Generic[D]):
    """What all deliveries of one function share.

    Attributes:
        destination_type: the name of the route type.
        send: makes one attempt.
        overtime_s: how long `send` may exceed its time limit, which it finds as `ctx.remaining_s`.
            None if it needs no timer here.
        evaluator: evaluates transformations in another process.
        state: the `ctx.state` of `send`.
        letters: decides which jobs that are given up leave a dead letter.
        options: reads what routes say of their delivery.
        excerpts: cuts answers beyond a tenant's share of the log.
    """

    destination_type: str
    send: Send[D]
    settings: DeliverySettings
    overtime_s: float | None
    reader: DestinationReader[D]
    journal: Journal
    admission: Admission
    evaluator: Evaluator
    state: Any
    letters: LetterShare
    options: OptionsReader = field(default_factory=OptionsReader)
    excerpts: ExcerptShare = field(default_factory=ExcerptShare)
    unreadable: UnreadableLog = field(default_factory=UnreadableLog)

    async def deliver(self, event: Event[Job], ctx: Context[Any]) -> None:
        """Deliver a job, unless it is delivered already.

        Raises:
            Reject: the attempt was refused, or the route is deleted, disabled or of another type.
            Retry: the attempt failed, or it is too early for one.
            Exception: whatever `send` raised, when the attempt is logged as failed.
        """
        job = event.data
        if event.subject.split(".")[1:2] != [job.tenant_id]:
            # Check this first: the log must hold nothing under a tenant that did not send the job.
            raise Reject("TENANT_MISMATCH", "the job names another tenant than its subject")
        key = route_key(job.route_id)
        route = await self.journal.find(Wanted(job.tenant_id, key, job.job_id)) if key else None
        if route is not None and route.is_done_for(event.headers.get(REPLAY_HEADER)):
            ctx.log.debug("the job is delivered, or sent by a later replay", job_id=job.job_id)
            return
        if await is_void_copy(event, route, self.journal):
            ctx.log.debug("another message is this job", job_id=job.job_id)
            return
        if job.is_test:
            await self._test(event, route, ctx)
        elif route is not None and route.holds_jobs:
            await self._hold(event)
        else:
            await self._try(event, route, ctx)

    async def _try(self, event: Event[Job], route: FoundRoute | None, ctx: Context[Any]) -> None:
        """Make an attempt, log it, and settle the job."""
        started_at, started_s = datetime.now(UTC), time.monotonic()
        receipt, failure = await self.attempt(event.data, route, ctx)
        if receipt.outcome == "skipped":
            reason = f"{receipt.code}: {receipt.reason}"
            raise Retry(reason, delay_s=receipt.retry_after_s, counts=False)
        attempt = self._logged(event, route, receipt, started_at, started_s)
        if not await self._is_kept(event, route, receipt, is_last=ctx.is_last_attempt):
            status = "refused" if receipt.outcome == "refused" else "dead"
            await self.journal.record(attempt._replace(content=None, status=status))
            return
        await self.journal.record(attempt)
        if failure is not None:
            raise failure
        _settle(receipt)

    async def _is_kept(
        self, event: Event[Job], route: FoundRoute | None, receipt: Receipt, *, is_last: bool
    ) -> bool:
        """Whether the job goes on, or leaves a dead letter and can be sent again.

        A job that counts already keeps what it has: one that was refused when it was made, or that
        a person has redriven, whose first dead letter is gone.
        """
        is_refused = receipt.outcome == "refused"
        if not (is_refused or (receipt.outcome == "failed" and is_last)):
            return True
        counts = route is not None and route.job_status in {"refused", "dead"}
        if counts or _REDRIVES in event.headers:
            return True
        letter_bytes = REFUSED_LETTER_BYTES if is_refused else DEAD_LETTER_BYTES
        return await self.letters.take(event.data.tenant_id, len(event.raw) + letter_bytes)

    async def _hold(self, event: Event[Job]) -> None:
        job = event.data
        kind = self.destination_type
        names = (job.tenant_id, job.job_id, job.route_id, kind)
        await self.journal.hold(HeldJob(*names, event.raw))

    async def _test(self, event: Event[Job], route: FoundRoute | None, ctx: Context[Any]) -> None:
        """Make the one attempt of a test, and log it. A failed test is not tried again."""
        if datetime.now(UTC) - event.data.stored_at > _TEST_IS_OLD:
            return  # Nobody waits for its result any more.
        started_at, started_s = datetime.now(UTC), time.monotonic()
        receipt, failure = await self.attempt(event.data, route, ctx)
        if failure is not None:
            ctx.log.warning("the test of a route failed", exc_info=failure)
        logged = self._logged(event, route, receipt, started_at, started_s)
        if receipt.outcome != "delivered":
            # The endpoint is not to be disabled for tests, whatever it answers.
            logged = logged._replace(status="refused", content=None, endpoint=None, route=None)
        await self.journal.record(logged)

    def _logged(
        self,
        event: Event[Job],
        route: FoundRoute | None,
        receipt: Receipt,
        started_at: datetime,
        started_s: float,
    ) -> Attempt:
        job = event.data
        endpoint, change = self._change_of(receipt, job, route)
        return Attempt(
            job.tenant_id,
            job.job_id,
            job.route_id,
            self.destination_type,
            _JOB_STATUS[receipt.outcome],
            started_at,
            round((time.monotonic() - started_s) * 1000),
            receipt.outcome,
            receipt.status_code,
            receipt.code or None,
            self.excerpts.cut(job.tenant_id, receipt.excerpt),
            None if receipt.outcome == "delivered" else event.raw,
            endpoint,
            change,
        )

    def _change_of(
        self, receipt: Receipt, job: Job, route: FoundRoute | None
    ) -> tuple[str | None, RouteChange | None]:
        """The endpoint's digest, and what the attempt changes of its route."""
        key = route_key(job.route_id)
        if route is None or key is None or route.destination_type != self.destination_type:
            return None, None
        try:
            destination = self.reader.read(route.stored, key)
        except Unreadable:
            return None, None
        if isinstance(destination, Unusable):
            return None, None
        endpoint = destination.endpoint.digest(self.destination_type)
        if endpoint == route.endpoint and not receipt.disables_route:
            return endpoint, None
        return endpoint, RouteChange(key, route.stored, receipt.disables_route)

    async def attempt(
        self, job: Job, route: FoundRoute | None, ctx: Context[Any]
    ) -> tuple[Receipt, Exception | None]:
        """The attempt's result, and the exception that `send` raised."""
        usable = _check_route(route, self.destination_type, is_test=job.is_test)
        if isinstance(usable, Receipt):
            return usable, None
        destination = self._read_destination(usable, job, ctx)
        if isinstance(destination, Receipt):
            return destination, None
        options = self.options.read(usable.delivery_options)
        if options.retry_delays_s is not None:
            ctx.use_retry_schedule(options.retry_delays_s)
        transformed: Job | Receipt = job
        if options.changes_job:
            transformed = await options.transform(job, self.evaluator)
        if isinstance(transformed, Receipt):
            return transformed, None
        timeout_s = options.timeout_s or self.settings.timeout_s
        if job.is_test:
            # A person waits for it, or it probes an endpoint that is paused.
            return await self._send(transformed, destination, ctx, timeout_s)
        key, origin = _admission_keys(job.tenant_id, destination.endpoint)
        if refusal := await self.admission.enter(key, origin):
            wait_s = refusal.wait_s
            return Receipt("skipped", refusal.code, refusal.reason, retry_after_s=wait_s), None
        health: EndpointHealth = "unknown"
        try:
            receipt, failure = await self._send(transformed, destination, ctx, timeout_s)
            health = receipt.health_of_endpoint
        finally:
            result, connected = SIGNS[health]
            self.admission.leave(key, origin, result, connected=connected)
        return receipt, failure

    def _read_destination(
        self, route: FoundRoute, job: Job, ctx: Context[Any]
    ) -> ReadDestination[D] | Receipt:
        """The destination, or why no attempt is made."""
        key = route_key(job.route_id)
        if key is None:
            return _NO_ROUTE
        try:
            found = self.reader.read(route.stored, key)
        except Unreadable as fault:
            self.unreadable.tell(ctx.log, job.route_id, str(fault))
            return _UNREADABLE
        if isinstance(found, Unusable):
            return Receipt("refused", "ROUTE_CONFIG_INVALID", found.reason)
        return found

    async def _send(
        self, job: Job, destination: ReadDestination[D], ctx: Context[Any], timeout_s: float
    ) -> tuple[Receipt, Exception | None]:
        inner = ctx.with_state(self.state)
        inner.deadline_s = asyncio.get_running_loop().time() + timeout_s
        limit: asyncio.Timeout | None = None
        try:
            if self.overtime_s is None:
                checked = await self.send(job, destination.value, inner)
            else:
                limit = asyncio.timeout(timeout_s + self.overtime_s)
                async with limit:
                    checked = await self.send(job, destination.value, inner)
        except Unavailable as outage:
            if not isinstance(outage, NoAnswer):
                raise  # NATS or PostgreSQL is away, and the endpoint was not tried.
            return _RAISED, without_secrets(outage, destination.secrets)
        except Retry as wish:
            outcome: Outcome = "failed" if wish.counts else "skipped"
            checked = Receipt(outcome, "SEND_FAILED", wish.reason, retry_after_s=_asked_by(wish))
        except Reject as refusal:
            checked = Receipt("refused", refusal.code, refusal.reason)
        except Exception as failure:  # noqa: BLE001 - a type's own code
            if limit is not None and isinstance(failure, TimeoutError) and limit.expired():
                return _TIMED_OUT, None
            return _RAISED, without_secrets(failure, destination.secrets)
        return self._bounded(checked, destination.secrets)

    def _bounded(
        self, receipt: Receipt, secrets: Sequence[str]
    ) -> tuple[Receipt, Exception | None]:
        try:
            checked = bounded(
                receipt,
                excerpt_characters=self.settings.excerpt_bytes,
                retry_after_cap_s=self.settings.retry_after_cap_s,
            )
        except TypeError as misfit:
            return _RAISED, misfit
        return receipt_without_secrets(checked, secrets), None


# The job waits, and uses up no attempt: a person must correct the keys.
_UNREADABLE = Receipt(
    "skipped",
    "SECRETS_UNREADABLE",
    "no key opens the secrets of the route",
    retry_after_s=60.0,
)
_NO_ROUTE = Receipt("refused", "ROUTE_GONE", "the job's route does not exist")
_RAISED = Receipt("failed", "SEND_FAILED", "the delivery function failed")
_TIMED_OUT = Receipt("failed", "TIMEOUT", "the attempt did not end in time")


def _asked_by(wish: Retry) -> float | None:
    return wish.delay_s if wish.at_least_s is None else wish.at_least_s


def _settle(receipt: Receipt) -> None:
    if receipt.outcome == "refused":
        raise Reject(receipt.code, receipt.reason)
    if receipt.outcome != "delivered":
        reason = f"{receipt.code}: {receipt.reason}"
        # Not in place of the schedule's delay: an endpoint that asks for some minutes each time
        # would use up all attempts within an hour, and the schedule tries for days.
        raise Retry(reason, at_least_s=receipt.retry_after_s)


def _check_route(
    route: FoundRoute | None, destination_type: str, *, is_test: bool
) -> FoundRoute | Receipt:
    """The route, or why no attempt is made."""
    if route is None:
        return _NO_ROUTE
    if route.refusal is not None:
        return Receipt("refused", route.refusal, "the job was refused when it was made")
    if not (route.is_enabled or is_test):
        return Receipt("refused", "ROUTE_DISABLED", "the job's route is disabled")
    if route.destination_type != destination_type:
        return Receipt("refused", "ROUTE_TYPE_CHANGED", "the job's route is of another type now")
    return route


def _admission_keys(
    tenant_id: str, endpoint: EndpointKey
) -> tuple[tuple[str, str], tuple[str, str] | str]:
    """The keys of the endpoint and of its origin; an endpoint without an origin is its own."""
    key = (tenant_id, endpoint.name)
    return key, endpoint.origin or key


__all__ = ["REPLAY_HEADER", "Delivery", "Send"]
