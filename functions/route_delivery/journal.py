"""What the database knows of routes, jobs and attempts; read and written for many jobs at once."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import asyncpg

from functions.domain.batching import Batcher
from functions.domain.destination_secrets import Stored
from functions.domain.named_sql import read_queries
from functions.route_delivery.health_log import HealthLog

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]

_QUERIES = read_queries(Path(__file__).with_name("queries.sql"))


class Wanted(NamedTuple):
    """A job whose route is looked up."""

    tenant_id: str
    route_id: UUID
    job_id: str


class FoundRoute(NamedTuple):
    """A route as it is now, and what is known of the job that asked.

    Attributes:
        disabled_reason: why the route was disabled, if no person did it.
        endpoint: the digest of the endpoint to which it led when it was tried last.
        job_status: the job's state; None for a new job.
        replay_id: the replay that sent the job last; None for none.
        only_copy: the origin of the one message that is this job; None while nobody doubts it.
        refusal: why the job was refused when it was made, until that is logged.
    """

    destination_type: str
    stored: Stored
    is_enabled: bool
    is_paused: bool = False
    disabled_reason: str | None = None
    endpoint: str | None = None
    job_status: str | None = None
    replay_id: str | None = None
    delivery_options: str = "{}"
    only_copy: str | None = None
    refusal: str | None = None

    @property
    def holds_jobs(self) -> bool:
        """Whether jobs wait until the route takes jobs again. A person's disabling refuses them."""
        return self.is_paused if self.is_enabled else self.disabled_reason is not None

    def is_done_for(self, replay_id: str | None) -> bool:
        """Whether nothing is to be done for a copy of the job, sent by a replay or by none.

        Of the copies of a job, only the one that was sent last is live. Once that one is given up,
        another copy may be redriven.
        """
        if self.job_status == "delivered":
            return True
        is_live = self.job_status in {"waiting", "failing", "held"}
        return is_live and self.replay_id is not None and self.replay_id != replay_id


@dataclass(frozen=True, slots=True)
class HeldJob:
    """A job that is kept until its route takes jobs again, in the order of the parameters."""

    tenant_id: str
    job_id: str
    route_id: str
    destination_type: str
    content: bytes


class Attempt(NamedTuple):
    """One attempt. A tuple, as it is made for every delivery and written as a row.

    Attributes:
        content: the job as it was published, if it is not delivered, to send it again.
        endpoint: the digest of the endpoint that was tried; None if the attempt says nothing of it.
        route: the route, if the attempt changes it.
    """

    tenant_id: str
    job_id: str
    route_id: str
    destination_type: str
    status: str
    started_at: datetime
    duration_ms: int
    outcome: str
    status_code: int | None
    error_code: str | None
    response_excerpt: str | None
    content: bytes | None = None
    endpoint: str | None = None
    route: "RouteChange | None" = None


@dataclass(frozen=True, slots=True)
class RouteChange:
    """What an attempt changes of its route, unless its configuration has changed meanwhile.

    Attributes:
        stored: the configuration with which the route was read.
        is_gone: its endpoint wants no more deliveries.
    """

    route_id: UUID
    stored: Stored
    is_gone: bool


# In the order of the statements' parameters. Not `astuple`, which copies each value deeply.
_VALUES = itemgetter(slice(-2))
_HELD = attrgetter(*(field.name for field in fields(HeldJob)))


class Journal:
    """Reads routes and writes attempts; concurrent callers share one statement."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._routes = Batcher(
            self._find_all,
            key=lambda wanted: (wanted.tenant_id, wanted.job_id),
            is_fault_of_data=_is_fault_of_data,
        )
        self._attempts = Batcher(
            self._record_all,
            # One statement updates a row once.
            key=_key_of,
            is_fault_of_data=_is_fault_of_data,
        )
        self._held = Batcher(self._hold_all, key=_key_of, is_fault_of_data=_is_fault_of_data)
        self._health = HealthLog(pool)

    async def find(self, wanted: Wanted) -> FoundRoute | None:
        """The tenant's route; None when there is none."""
        return await self._routes.add(wanted)

    async def claim(self, tenant_id: str, job_id: str, origin: str) -> bool:
        """Make a message the only copy of its job; False when the job was tried or has one."""
        claimed = await self._pool.fetchval(_QUERIES["claim_job"], tenant_id, job_id, origin)
        return claimed is not None

    async def record(self, attempt: Attempt) -> None:
        """Log an attempt; returns when it is committed."""
        await self._attempts.add(attempt)

    async def hold(self, job: HeldJob) -> None:
        """Keep a job until its route takes jobs again; returns when it is committed."""
        await self._held.add(job)

    async def close(self) -> None:
        """Wait for what was begun."""
        await self._routes.close()
        await self._attempts.close()
        await self._held.close()

    async def _find_all(self, wanted: Sequence[Wanted]) -> list[FoundRoute | None]:
        rows = await self._pool.fetch(
            _QUERIES["find_routes"],
            [one.tenant_id for one in wanted],
            [one.route_id for one in wanted],
            [one.job_id for one in wanted],
        )
        found: list[FoundRoute | None] = [None] * len(wanted)
        for number, kind, shown, secrets, *state in rows:
            found[number - 1] = FoundRoute(kind, Stored(shown, secrets), *state)
        return found

    async def _record_all(self, attempts: Sequence[Attempt]) -> list[None]:
        # In the order of their keys: two hosts that lock the same rows shall not wait in a circle.
        columns = zip(*map(_VALUES, sorted(attempts, key=_key_of)), strict=True)
        await self._pool.execute(_QUERIES["record_attempts"], *(list(each) for each in columns))
        await self._change_routes([each for each in attempts if each.route is not None])
        await self._health.record(attempts)
        return [None] * len(attempts)

    async def _change_routes(self, attempts: Sequence[Attempt]) -> None:
        """Note the endpoints of routes, and disable the routes whose endpoints are gone."""
        if not attempts:
            return
        links = {
            (each.tenant_id, each.route.route_id, each.endpoint, *_parts_of(each.route.stored))
            for each in attempts
            if each.route is not None and each.endpoint is not None
        }
        if links:
            await self._pool.execute(
                _QUERIES["link_endpoints"], *map(list, zip(*links, strict=True))
            )
        for each in attempts:
            if each.route is not None and each.route.is_gone:
                await self._pool.execute(
                    _QUERIES["disable_gone"],
                    *(each.tenant_id, each.route.route_id, each.route.stored.shown),
                    *(each.endpoint or "", each.error_code, each.status_code),
                    each.route.stored.secrets,
                )

    async def _hold_all(self, jobs: Sequence[HeldJob]) -> list[None]:
        columns = zip(*map(_HELD, sorted(jobs, key=_key_of)), strict=True)
        await self._pool.execute(_QUERIES["hold_jobs"], *(list(each) for each in columns))
        return [None] * len(jobs)


def _parts_of(stored: Stored) -> tuple[str, bytes | None]:
    return stored.shown, stored.secrets


def _key_of(of_job: Attempt | HeldJob) -> tuple[str, str]:
    return of_job.tenant_id, of_job.job_id


def _is_fault_of_data(failure: Exception) -> bool:
    return isinstance(failure, asyncpg.DataError | asyncpg.IntegrityConstraintViolationError)


__all__ = ["Attempt", "FoundRoute", "HeldJob", "Journal", "RouteChange", "Wanted"]
