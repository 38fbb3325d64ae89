"""The retention function removes old entries of the delivery log and keeps the others."""

import structlog

from functions.route_delivery.retention import RetentionSettings, forget_old_deliveries
from runtime import Context
from runtime.context import Scope
from runtime.resource.postgres import open_pool


async def test_old_jobs_go_with_their_attempts_and_younger_ones_stay(postgres_dsn: str) -> None:
    pool = await open_pool(postgres_dsn, max_size=1)
    for days in (29, 31):
        await pool.execute(
            "INSERT INTO delivery_jobs (tenant_id, job_id, route_id, destination_type, status,"
            " attempts, last_attempt_at)"
            " SELECT 't', $1 || '-' || n, 'r', 'webhook', 'delivered', 1,"
            " now() - $2 * '1d'::interval FROM generate_series(1, 5100) AS n",
            f"{days}",
            days,
        )
    await pool.execute(
        "INSERT INTO delivery_attempts (tenant_id, job_id, attempt, route_id, destination_type,"
        " started_at, duration_ms, outcome)"
        " SELECT tenant_id, job_id, 1, route_id, destination_type, last_attempt_at, 1, 'delivered'"
        " FROM delivery_jobs"
    )
    scope = Scope(
        function="forget_deliveries",
        settings=RetentionSettings(),
        broker=None,  # type: ignore[arg-type] # it publishes nothing
        resources={"postgres": pool},
        log=structlog.get_logger(),
    )
    await forget_old_deliveries(Context(scope))
    for table in ("delivery_jobs", "delivery_attempts"):
        kept = await pool.fetch(f"SELECT split_part(job_id, '-', 1) AS days FROM {table}")  # noqa: S608
        assert [row["days"] for row in kept] == ["29"] * 5100
    await pool.close()
