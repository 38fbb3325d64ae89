"""The statements of every delivery look jobs up by their key, in a new installation too."""

from pathlib import Path

import asyncpg
import pytest

from functions.domain.named_sql import read_queries
from functions.management import deliveries
from functions.route_delivery.journal import _QUERIES

BY_KEY = "Index Scan using delivery_jobs_pkey on delivery_jobs"
# PostgreSQL's own statement for a reference. Source: ri_triggers.c, RI_FKey_check.
REFERENCE = (
    "SELECT 1 FROM ONLY delivery_jobs x WHERE tenant_id = $1 AND job_id = $2 FOR KEY SHARE OF x"
)


@pytest.mark.parametrize(
    ("statement", "types", "arguments"),
    [
        (_QUERIES["find_routes"], "text[], uuid[], text[]", "'{a}', '{}', '{b}'"),
        (REFERENCE, "text, text", "'a', 'b'"),
    ],
)
async def test_a_job_is_found_by_its_key_before_the_tables_have_statistics(
    postgres_dsn: str, statement: str, types: str, arguments: str
) -> None:
    connection = await asyncpg.connect(postgres_dsn)
    try:
        # The plan that a connection keeps, made as it is while the tables are empty.
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        await connection.execute(f"PREPARE wanted ({types}) AS {statement}")
        rows = await connection.fetch(f"EXPLAIN EXECUTE wanted ({arguments})")
    finally:
        await connection.close()
    plan = "\n".join(row[0] for row in rows)
    assert BY_KEY in plan, plan
    assert "(tenant_id = " in plan
    assert "(job_id = " in plan


async def test_the_newest_attempts_of_all_tenants_are_read_in_order(postgres_dsn: str) -> None:
    page = read_queries(Path(deliveries.__file__).with_name("deliveries.sql"))["page"]
    connection = await asyncpg.connect(postgres_dsn)
    try:
        await connection.execute(
            "INSERT INTO delivery_jobs SELECT 't', n::text, 'r', 'webhook', 'failing', 1"
            " FROM generate_series(1, 2000) AS n"
        )
        await connection.execute(
            "INSERT INTO delivery_attempts (tenant_id, job_id, attempt, route_id, destination_type,"
            " started_at, duration_ms, outcome) SELECT 't', n::text, 1, 'r', 'webhook',"
            " now() - n * interval '1 second', 5, 'failed' FROM generate_series(1, 2000) AS n"
        )
        await connection.execute("ANALYZE delivery_attempts")
        rows = await connection.fetch(f"EXPLAIN {page}", *[None] * 9, 100)
    finally:
        await connection.close()
    plan = "\n".join(row[0] for row in rows)
    assert "delivery_attempts_by_time" in plan, plan
