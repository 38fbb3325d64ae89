"""What the database knows of routes, jobs and attempts; read and written for many jobs at once."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import asyncpg

from functions.domain.named_sql import read_queries
from functions.route_delivery.batching import Batcher

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]

_QUERIES = read_queries(Path(__file__).with_name("queries.sql"))


@dataclass(frozen=True, slots=True)
class Wanted:
    """A job whose route is looked up."""

    tenant_id: str
    route_id: UUID
    job_id: str


@dataclass(frozen=True, slots=True)
class FoundRoute:
    """A route as it is now, and whether the job that asked was delivered already."""

    destination_type: str
    destination_config: str
    is_enabled: bool
    is_delivered: bool


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt, in the order of the statement's parameters.

    Attributes:
        gone_route: the route to disable, since its endpoint wants no more deliveries.
        gone_config: the configuration with which that route was read.
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
    gone_route: UUID | None = None
    gone_config: str | None = None


# Not `astuple`, which copies each value deeply.
_VALUES = attrgetter(*(field.name for field in fields(Attempt)))


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
            key=lambda attempt: (attempt.tenant_id, attempt.job_id),
            is_fault_of_data=_is_fault_of_data,
        )

    async def find(self, wanted: Wanted) -> FoundRoute | None:
        """The tenant's route; None when there is none."""
        return await self._routes.add(wanted)

    async def record(self, attempt: Attempt) -> None:
        """Log an attempt; returns when it is committed."""
        await self._attempts.add(attempt)

    async def close(self) -> None:
        """Wait for what was begun."""
        await self._routes.close()
        await self._attempts.close()

    async def _find_all(self, wanted: Sequence[Wanted]) -> list[FoundRoute | None]:
        rows = await self._pool.fetch(
            _QUERIES["find_routes"],
            [one.tenant_id for one in wanted],
            [one.route_id for one in wanted],
            [one.job_id for one in wanted],
        )
        found: list[FoundRoute | None] = [None] * len(wanted)
        for number, *route in rows:
            found[number - 1] = FoundRoute(*route)
        return found

    async def _record_all(self, attempts: Sequence[Attempt]) -> list[None]:
        # In the order of their keys: two hosts that lock the same rows shall not wait in a circle.
        ordered = sorted(attempts, key=lambda attempt: (attempt.tenant_id, attempt.job_id))
        columns = zip(*map(_VALUES, ordered), strict=True)
        await self._pool.execute(_QUERIES["record_attempts"], *(list(each) for each in columns))
        return [None] * len(attempts)


def _is_fault_of_data(failure: Exception) -> bool:
    return isinstance(failure, asyncpg.DataError | asyncpg.IntegrityConstraintViolationError)


__all__ = ["Attempt", "FoundRoute", "Journal", "Wanted"]
