"""Bounds the dead letters that one tenant's refused and failed jobs leave.

The host keeps all dead letters in one stream, which refuses when it is full, and then no function
can give a message up. A route whose every job is refused at once, or has one attempt that fails,
would fill it within minutes.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import asyncpg
import structlog

from functions.domain.delivery_counts import DeliveryCounts, counts_of_tenants
from functions.domain.hourly import Hourly
from functions.domain.notices import Notice, add_notice

TENANT_REFUSED_FULL = "TENANT_REFUSED_FULL"
_KNOWN_FOR_S = 1.0
_MAX_TENANTS = 10_000
_HOUR_S = 3600


@dataclass(slots=True)
class _Usage:
    read_at_s: float
    given_up_bytes: int


class LetterShare:
    """Decides whether a job that is given up leaves a dead letter, or is only counted.

    Args:
        pool: where the bytes of a tenant's refused and dead jobs are counted. They are read at
            most once a second, so a tenant may exceed its share by what is refused within one.
        most_bytes: the share of a tenant.
        log: gets a warning, once an hour for a tenant, when it also gets a notice.
        now_s: a monotonic clock.
    """

    def __init__(
        self,
        pool: "asyncpg.Pool[asyncpg.Record]",
        most_bytes: int,
        log: structlog.stdlib.BoundLogger,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._most_bytes = most_bytes
        self._log = log
        self._now_s = now_s
        self._usage: dict[str, _Usage] = {}
        self._hourly = Hourly()

    async def take(self, tenant_id: str, size_bytes: int) -> bool:
        """Whether a job whose letter has this size leaves one; if so, it is counted.

        Raises:
            asyncpg.PostgresError, OSError: the database did not answer.
        """
        usage = self._usage.get(tenant_id)
        now_s = self._now_s()
        if usage is None or now_s - usage.read_at_s > _KNOWN_FOR_S:
            found = await counts_of_tenants(self._pool, [tenant_id])
            counts = found.get(tenant_id, DeliveryCounts())
            if len(self._usage) >= _MAX_TENANTS:
                self._usage.clear()
            usage = self._usage[tenant_id] = _Usage(now_s, counts.given_up_bytes)
        if usage.given_up_bytes + size_bytes <= self._most_bytes:
            usage.given_up_bytes += size_bytes
            return True
        await self._tell(tenant_id)
        return False

    async def _tell(self, tenant_id: str) -> None:
        now_s = time.time()
        if not self._hourly.is_due(tenant_id, now_s):
            return
        self._log.warning(
            "Jobs of a tenant are given up without a letter, as it has too many",
            tenant_id=tenant_id,
        )
        data = {
            "code": TENANT_REFUSED_FULL,
            "reason": "more bytes of refused and dead jobs are kept than a tenant may have",
            "max_given_up_bytes": self._most_bytes,
        }
        key = f"jobs_refused/{TENANT_REFUSED_FULL}/{int(now_s) // _HOUR_S}"
        await add_notice(self._pool, Notice(tenant_id, "jobs_refused", key, data))


__all__ = ["TENANT_REFUSED_FULL", "LetterShare"]
