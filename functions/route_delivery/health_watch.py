"""Judges the endpoints that fail: tells their tenants, disables them, and enables them again.

`health` has the rule. This function runs on the clock, once in the cluster, so deliveries only
count; they decide nothing.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import asyncpg
import orjson
from pydantic import BaseModel, ConfigDict, Field, field_validator

from functions.domain.named_sql import read_queries
from functions.domain.notices import Notice, add_notice
from functions.route_delivery.health import FAILING, FailureHour, Health, Rules, Verdict, judge
from runtime import Context

_QUERIES = read_queries(Path(__file__).with_name("health.sql"))
_AT_A_TIME = 500

Percent = Annotated[int, Field(ge=1, le=99)]


class HealthSettings(BaseModel):
    """Settings of the rule that disables an endpoint.

    Attributes:
        disable_after_hours: an endpoint that failed for so long is disabled.
        clock_failures: the clock starts after so many failures
        clock_within_hours: within so many hours,
        clock_span_hours: of which the first and the last are so far apart.
        thresholds: shares of the way, in percent, at which the tenant is told.
        recovery_rate_per_s: jobs a second with which a recovered route gets what it missed; 0 for
            not by itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    disable_after_hours: Annotated[float, Field(gt=0, le=8760)] = 120.0
    clock_failures: Annotated[int, Field(ge=1, le=1000)] = 3
    clock_within_hours: Annotated[float, Field(gt=0, le=24)] = 24.0
    clock_span_hours: Annotated[float, Field(ge=0, le=24)] = 12.0
    thresholds: Annotated[tuple[Percent, ...], Field(max_length=10)] = (50, 70, 90)
    recovery_rate_per_s: Annotated[int, Field(ge=0, le=1000)] = 20

    @field_validator("thresholds")
    @classmethod
    def _ascend(cls, thresholds: tuple[int, ...]) -> tuple[int, ...]:
        if list(thresholds) != sorted(set(thresholds)):
            raise ValueError("the thresholds must ascend")
        return thresholds

    @property
    def rules(self) -> Rules:
        """The numbers in the form in which they are used."""
        return Rules(
            self.clock_failures,
            timedelta(hours=self.clock_within_hours),
            timedelta(hours=self.clock_span_hours),
            timedelta(hours=self.disable_after_hours),
            self.thresholds,
        )


# The name under which the host looks for a function's settings.
Settings = HealthSettings


async def watch_endpoints(ctx: Context) -> None:
    """Judge every endpoint that fails, or of whose failures the tenant was told."""
    rules = ctx.settings.rules
    after = ("", "")
    while True:
        rows = await ctx.postgres.fetch(_QUERIES["watched"], *after, rules.span, _AT_A_TIME)
        for row in rows:
            health = _health(row)
            verdict = judge(health, _hours(row["hours"]), rules)
            if _is_new(verdict, health):
                await _settle(ctx, row, health, verdict)
        if len(rows) < _AT_A_TIME:
            break
        after = (rows[-1]["tenant_id"], rows[-1]["endpoint"])
    await ctx.postgres.execute(_QUERIES["forget_old_failures"])


def _is_new(verdict: Verdict, health: Health) -> bool:
    return (
        verdict.recovers
        or verdict.tell_percent is not None
        or verdict.clock_started_at != health.clock_started_at
    )


async def _settle(ctx: Context, row: asyncpg.Record, health: Health, verdict: Verdict) -> None:
    """Act on a verdict, in one transaction; do nothing if the health has changed meanwhile."""
    key = (row["tenant_id"], row["endpoint"])
    settings: HealthSettings = ctx.settings
    told = verdict.tell_percent or (0 if verdict.recovers else health.told_percent)
    disabled = True if verdict.disables else False if verdict.recovers else None
    async with ctx.postgres.acquire() as connection, connection.transaction():
        # Routes first, as a change of a route does: no transactions that wait for each other.
        routes = await connection.fetch(_QUERIES["routes_of_endpoint"], *key)
        settled = await connection.fetch(
            _QUERIES["settle"],
            *(*key, health.failing_since, health.clock_started_at, health.told_percent),
            *(verdict.clock_started_at, told, disabled),
        )
        if not settled:
            return
        if not routes:
            await connection.execute(_QUERIES["forget_endpoint"], *key)
            return
        if verdict.disables:
            await connection.execute(_QUERIES["disable_routes"], *key, FAILING)
        elif verdict.recovers and health.disabled_at is not None:
            # All attempts have failed for so long before it was disabled.
            since = health.disabled_at - settings.rules.disable_after - settings.rules.within
            rate = settings.recovery_rate_per_s
            await connection.execute(_QUERIES["enable_routes"], *key, since, rate)
        for notice in make_notices(row, routes, verdict, settings.rules):
            await add_notice(connection, notice)
    _log(ctx, row, verdict)


def make_notices(
    row: Any,  # noqa: ANN401 - a row
    routes: Sequence[Any],
    verdict: Verdict,
    rules: Rules,
) -> list[Notice]:
    """The notices of a verdict: that the endpoint works again, and how far it is from the end."""
    tenant_id, endpoint = row["tenant_id"], row["endpoint"]
    # A notice that reaches its own endpoint would beget another one.
    is_routed = not all(route["is_of_notices"] for route in routes)
    about: dict[str, Any] = {
        "endpoint": endpoint,
        "routes": [{"route_id": route["route_id"], "name": route["name"]} for route in routes],
        "last_error_code": row["last_error_code"],
        "last_status_code": row["last_status_code"],
        "last_failure_at": row["last_failure_at"],
    }
    notices: list[Notice] = []
    if verdict.recovers:
        was_disabled = row["disabled_at"] is not None
        data = about | {"was_disabled": was_disabled, "last_success_at": row["last_success_at"]}
        key = f"{endpoint}/recovered/{row['last_success_at'].isoformat()}"
        notices.append(Notice(tenant_id, "endpoint_recovered", key, data, is_routed))
    if verdict.tell_percent is not None and verdict.clock_started_at is not None:
        started_at = verdict.clock_started_at
        data = about | {
            "percent": verdict.percent,
            "failing_since": row["failing_since"],
            "failures": row["failures"],
            "disabled_at": started_at + rules.disable_after,
        }
        kind = "endpoint_disabled" if verdict.disables else "endpoint_failing"
        if verdict.disables:
            data |= {"reason": FAILING, "disabled_at": None}
        key = f"{endpoint}/{started_at.isoformat()}/{verdict.tell_percent}"
        notices.append(Notice(tenant_id, kind, key, data, is_routed))
    return notices


def _log(ctx: Context, row: Any, verdict: Verdict) -> None:  # noqa: ANN401 - a row
    told = {"tenant_id": row["tenant_id"], "endpoint": row["endpoint"]}
    if verdict.recovers:
        ctx.log.info("An endpoint that failed works again", **told)
    if verdict.disables:
        ctx.log.warning(
            "An endpoint has only failed for days, so its routes are disabled",
            **told,
            last_error_code=row["last_error_code"],
            failing_since=row["failing_since"].isoformat(),
        )


def _health(row: Any) -> Health:  # noqa: ANN401 - a row
    return Health(
        row["failing_since"],
        row["last_failure_at"],
        row["last_success_at"],
        row["clock_started_at"],
        row["told_percent"],
        row["disabled_at"],
    )


def _hours(rows: Sequence[str]) -> list[FailureHour]:
    hours = (orjson.loads(text) for text in rows)
    return [
        FailureHour(failures, datetime.fromisoformat(first), datetime.fromisoformat(last))
        for failures, first, last in hours
    ]


__all__ = ["HealthSettings", "Settings", "make_notices", "watch_endpoints"]
