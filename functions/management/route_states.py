"""The state of a route and the health of its endpoint, as lists of routes show them."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel

from functions.domain.named_sql import read_queries

_QUERIES = read_queries(Path(__file__).with_name("route_life.sql"))

State = Literal["unknown", "healthy", "failing", "disabled"]


class RouteState(BaseModel):
    """The state of a route and the health of its endpoint.

    Attributes:
        state: `unknown` before the first attempt.
        is_paused: the route's jobs are held until it is resumed.
        disabled_reason: `ENDPOINT_GONE` (it answered 410) or `ENDPOINT_FAILING` (it only failed for
            days); null when a person disabled the route, or nobody did. Jobs of a route with a
            reason are held.
        failing_since: first failure after the last success.
        failures: how many since then.
        failures_24h: how many in the last 24 hours.
        clock_started_at: from when on the days count after which the endpoint is disabled.
    """

    state: State
    is_paused: bool
    paused_at: datetime | None
    disabled_at: datetime | None
    disabled_reason: str | None
    failing_since: datetime | None
    failures: int
    failures_24h: int
    last_failure_at: datetime | None
    last_success_at: datetime | None
    last_error_code: str | None
    last_status_code: int | None
    clock_started_at: datetime | None


async def find_states(
    executor: Any,  # noqa: ANN401 - pool or connection
    tenant_id: str,
    route_ids: Sequence[UUID],
) -> dict[UUID, RouteState]:
    """The states of a tenant's routes."""
    rows = await executor.fetch(_QUERIES["states"], tenant_id, list(route_ids))
    return {row["id"]: RouteState.model_validate(dict(row)) for row in rows}


__all__ = ["RouteState", "find_states"]
