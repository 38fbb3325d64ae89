"""Tells tenants of filters that were not evaluated, so that no job is missing in silence."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from functions.domain.notices import Notice
from functions.domain.route_decisions import Decision

KIND = "filters_undecided"
_SAY_EVERY_S = 60.0
_MAX_TENANTS = 10_000
_MAX_ROUTES = 20
_HOUR_S = 3600


@dataclass(slots=True)
class _Found:
    reason: str
    since: datetime
    said_at_s: float | None = None
    messages: int = 0
    routes: set[str] = field(default_factory=set)


class UndecidedFilters:
    """Counts what was not decided, for a notice and a line of the log once a minute.

    The row of such a message is written, and it has no job for the route. A replay of the kind
    `missing` since the time in the notice evaluates the route's filter again, and makes the job.

    Args:
        log: gets a warning for each tenant and code.
        now_s: a monotonic clock.
    """

    def __init__(
        self,
        log: structlog.stdlib.BoundLogger,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._now_s = now_s
        self._found: dict[tuple[str, str], _Found] = {}

    def add(self, tenant_id: str, route_id: str, stored_at: datetime, decision: Decision) -> None:
        """Count a message that a route's filter has not decided."""
        key = (tenant_id, decision.code or "")
        found = self._found.get(key)
        if found is None:
            if len(self._found) >= _MAX_TENANTS:
                self._found.clear()
            found = self._found[key] = _Found(decision.reason, stored_at)
        found.since = min(found.since, stored_at) if found.messages else stored_at
        found.messages += 1
        if len(found.routes) < _MAX_ROUTES:
            found.routes.add(route_id)

    def notices(self) -> list[Notice]:
        """What the tenants are to be told now; an hour's notices of a code are one, and counted."""
        now_s, hour = self._now_s(), int(time.time()) // _HOUR_S
        return [
            Notice(
                tenant_id,
                KIND,
                f"{KIND}/{code}/{hour}",
                {
                    "code": code,
                    "reason": found.reason,
                    "route_ids": sorted(found.routes),
                    "since": found.since,
                },
                count=found.messages,
            )
            for (tenant_id, code), found in sorted(self._found.items())
            if found.messages
            and (found.said_at_s is None or now_s - found.said_at_s >= _SAY_EVERY_S)
        ]

    def told(self, notices: Iterable[Notice]) -> None:
        """Forget what notices have told whose transaction is committed, and log it."""
        for notice in notices:
            key = (notice.tenant_id, notice.data["code"])
            found = self._found.get(key)
            if notice.kind != KIND or found is None:
                continue
            self._log.warning(
                "Filters of a tenant were not evaluated, so messages have no jobs for their routes",
                tenant_id=notice.tenant_id,
                code=notice.data["code"],
                reason=found.reason,
                messages=found.messages,
                route_ids=sorted(found.routes),
            )
            # What was added since the notice was made is counted in the next one.
            left = max(0, found.messages - notice.count)
            self._found[key] = _Found(found.reason, found.since, self._now_s(), left)
            if left:
                self._found[key].routes |= found.routes


__all__ = ["KIND", "UndecidedFilters"]
