"""Counts the attempts of a batch for the health of their endpoints, with one statement for all."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from functions.domain.named_sql import read_queries

if TYPE_CHECKING:
    import asyncpg

    Pool = asyncpg.Pool[asyncpg.Record]

_QUERIES = read_queries(Path(__file__).with_name("health.sql"))
SUCCESS_EVERY_S = 30.0
"""A success of an endpoint that has not failed here since is written at most so often."""
_MAX_KNOWN = 50_000


class Counted(Protocol):
    """What is read of an attempt."""

    @property
    def tenant_id(self) -> str:
        """The tenant."""

    @property
    def endpoint(self) -> str | None:
        """The digest of the endpoint; None if the attempt says nothing of it."""

    @property
    def outcome(self) -> str:
        """What became of the attempt."""

    @property
    def error_code(self) -> str | None:
        """Why it failed."""

    @property
    def status_code(self) -> int | None:
        """What the endpoint answered."""


@dataclass(slots=True)
class Tally:
    """The attempts of one endpoint in a batch.

    Attributes:
        has_success: whether one was delivered.
        failures: how many failed after the last success.
        error_code: of the last failure.
        status_code: of the last failure.
    """

    has_success: bool = False
    failures: int = 0
    error_code: str | None = None
    status_code: int | None = None

    def add(self, attempt: Counted) -> None:
        """Count one attempt. A refused job says that it is bad, not that its endpoint is."""
        if attempt.outcome == "delivered":
            self.has_success, self.failures = True, 0
        elif attempt.outcome == "failed":
            self.failures += 1
            self.error_code, self.status_code = attempt.error_code, attempt.status_code


class HealthLog:
    """Writes tallies. A healthy endpoint costs one row in `SUCCESS_EVERY_S`."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._written_at_s: dict[tuple[str, str], float] = {}

    async def record(self, attempts: Iterable[Counted]) -> None:
        """Count attempts, in the order in which they ended."""
        now_s = self._loop.time()
        tallies = {
            key: tally
            for key, tally in tally_of(attempts).items()
            if self._is_news(key, tally, now_s)
        }
        if not tallies:
            return
        await self._pool.execute(
            _QUERIES["record_health"],
            [tenant_id for tenant_id, _ in tallies],
            [endpoint for _, endpoint in tallies],
            [tally.has_success for tally in tallies.values()],
            [tally.failures for tally in tallies.values()],
            [tally.error_code for tally in tallies.values()],
            [tally.status_code for tally in tallies.values()],
        )
        self._remember(tallies, now_s)

    def _is_news(self, key: tuple[str, str], tally: Tally, now_s: float) -> bool:
        if tally.failures:
            return True
        written_at_s = self._written_at_s.get(key)
        return tally.has_success and (
            written_at_s is None or now_s - written_at_s >= SUCCESS_EVERY_S
        )

    def _remember(self, tallies: dict[tuple[str, str], Tally], now_s: float) -> None:
        if len(self._written_at_s) + len(tallies) > _MAX_KNOWN:
            self._written_at_s.clear()
        for key, tally in tallies.items():
            if tally.failures:
                self._written_at_s.pop(key, None)
            else:
                self._written_at_s[key] = now_s


def tally_of(attempts: Iterable[Counted]) -> dict[tuple[str, str], Tally]:
    """The tallies by tenant and endpoint."""
    tallies: dict[tuple[str, str], Tally] = {}
    for attempt in attempts:
        if attempt.endpoint is not None:
            tallies.setdefault((attempt.tenant_id, attempt.endpoint), Tally()).add(attempt)
    return tallies


__all__ = ["SUCCESS_EVERY_S", "HealthLog", "Tally", "tally_of"]
