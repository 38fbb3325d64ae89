"""Probes endpoints that were disabled for their failures: one test message a day."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from functions.domain.named_sql import read_queries
from functions.route_delivery.job import Job
from runtime import Context, Publication

_QUERIES = read_queries(Path(__file__).with_name("health.sql"))
_AT_A_TIME = 500


class ProbeSettings(BaseModel):
    """Settings of the probes.

    Attributes:
        every_hours: time between two probes of an endpoint.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    every_hours: Annotated[float, Field(gt=0, le=720)] = 24.0


# The name under which the host looks for a function's settings.
Settings = ProbeSettings


async def probe_endpoints(ctx: Context) -> None:
    """Send a test to each disabled endpoint that is due. `watch_endpoints` sees the result."""
    every = timedelta(hours=ctx.settings.every_hours)
    rows = await ctx.postgres.fetch(_QUERIES["due_probes"], every, _AT_A_TIME)
    probes = [make_test(row["tenant_id"], row["route_id"], f"probe-{uuid4()}") for row in rows]
    if not probes:
        return
    publications = [
        Publication(
            f"routes.{probe.tenant_id}.{row['destination_type']}",
            probe.model_dump_json().encode(),
            msg_id=probe.job_id,
        )
        for probe, row in zip(probes, rows, strict=True)
    ]
    await ctx.publish_many(publications)
    await ctx.postgres.execute(
        _QUERIES["mark_probed"],
        [row["tenant_id"] for row in rows],
        [row["endpoint"] for row in rows],
    )


def make_test(tenant_id: str, route_id: str, job_id: str) -> Job:
    """A message that tests a route."""
    return Job(
        job_id=job_id,
        route_id=route_id,
        tenant_id=tenant_id,
        topic=f"tenant/{tenant_id}/test",
        msg_type="test",
        payload={"is_test": True, "text": "This message tests the route. It is no device's."},
        stored_at=datetime.now(UTC),
        is_test=True,
    )


__all__ = ["ProbeSettings", "Settings", "make_test", "probe_endpoints"]
