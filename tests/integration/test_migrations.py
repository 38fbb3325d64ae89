"""Migrations and partitions on a real PostgreSQL."""

import asyncio
from pathlib import Path

import asyncpg
import pytest

from functions.ingest.partitions import PartitionSettings, make_partitions
from runtime import Context, Unavailable
from runtime.context import Scope
from runtime.errors import ConfigError
from runtime.resource.postgres import migrate, open_pool
from tests.support.gateway import Lines

PACKAGE = "functions.domain.migrations"
VERSIONS = Path(__file__).parents[2] / "functions" / "domain" / "migrations" / "versions"
TABLE = "alembic_version_functions_domain_migrations"


async def test_several_hosts_may_migrate_an_empty_database_at_once(
    empty_postgres_dsn: str,
) -> None:
    await asyncio.gather(*(migrate(empty_postgres_dsn, [PACKAGE]) for _ in range(5)))
    connection = await asyncpg.connect(empty_postgres_dsn)
    head = sorted(path.stem for path in VERSIONS.glob("0*.py"))[-1].partition("_")[0]
    assert await connection.fetchval(f"SELECT array_agg(version_num) FROM {TABLE}") == [head]  # noqa: S608
    assert await connection.fetchval("SELECT count(*) FROM telemetry") == 0
    await connection.close()


async def test_migrating_again_changes_nothing_and_keeps_the_data(postgres_dsn: str) -> None:
    connection = await asyncpg.connect(postgres_dsn)
    await connection.execute("INSERT INTO tenants (tenant_id) VALUES ('t')")
    await migrate(postgres_dsn, [PACKAGE])
    assert await connection.fetchval("SELECT count(*) FROM tenants") == 1
    await connection.close()


async def test_a_database_newer_than_the_program_is_refused(postgres_dsn: str) -> None:
    connection = await asyncpg.connect(postgres_dsn)
    await connection.execute(f"UPDATE {TABLE} SET version_num = '9999'")  # noqa: S608
    with pytest.raises(ConfigError, match="9999"):
        await migrate(postgres_dsn, [PACKAGE])
    await connection.close()


async def test_a_package_without_versions_is_a_mistake_of_the_manifest(postgres_dsn: str) -> None:
    for package in ("functions.domain", "nowhere"):
        with pytest.raises(ConfigError, match=package):
            await migrate(postgres_dsn, [package])


@pytest.mark.parametrize(
    "dsn", ["nonsense", "postgresql://u:secret@127.0.0.1:port/x", "mysql://u:secret@h/x"]
)
async def test_an_address_that_cannot_be_read_is_not_repeated(dsn: str) -> None:
    with pytest.raises(ConfigError, match="DATABASE_URL") as refused:
        await open_pool(dsn, max_size=1)
    assert "secret" not in str(refused.value)


async def test_a_database_that_is_not_there_must_be_named_right(postgres_dsn: str) -> None:
    with pytest.raises(ConfigError, match="DATABASE_URL"):
        await migrate(postgres_dsn.replace("/test_", "/nowhere_"), [PACKAGE])


async def test_a_server_that_does_not_answer_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="PostgreSQL"):
        await migrate("postgresql://u:secret@127.0.0.1:1/x", [PACKAGE])


async def test_rows_of_the_default_partition_move_into_their_days(postgres_dsn: str) -> None:
    pool = await open_pool(postgres_dsn, max_size=2)
    row = (
        "INSERT INTO telemetry VALUES"
        " (date_trunc('day', now(), 'UTC') + $1 * interval '1 day', 't', 'd', 's', 'x', $1, '{}')"
    )
    for day in (0, 9, 10, 500):
        await pool.execute(row, day)
    default = "SELECT count(*) FROM telemetry_default"
    assert await pool.fetchval(default) == 3
    scope = Scope("p", PartitionSettings(days_ahead=10), None, {"postgres": pool}, None)  # type: ignore[arg-type]
    made = "SELECT ensure_telemetry_partitions(10)"
    assert sum(await asyncio.gather(*(pool.fetchval(made) for _ in range(4)))) == 3
    assert await pool.fetchval(default) == 1
    assert await pool.fetchval("SELECT count(*) FROM telemetry") == 4
    await make_partitions(Context(scope))
    await pool.close()


async def test_old_partitions_are_dropped_and_others_kept(postgres_dsn: str) -> None:
    pool = await open_pool(postgres_dsn, max_size=2)
    await pool.execute(
        "CREATE TABLE telemetry_20200101 PARTITION OF telemetry"
        " FOR VALUES FROM ('2020-01-01Z') TO ('2020-01-02Z')"
    )
    days = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'telemetry'::regclass"
    before = await pool.fetchval(days)
    assert await pool.fetchval("SELECT drop_old_telemetry_partitions(30)") == 1
    assert await pool.fetchval(days) == before - 1
    await pool.close()


async def test_who_holds_the_telemetry_table_is_given_way_to(postgres_dsn: str) -> None:
    pool = await open_pool(postgres_dsn, max_size=2)
    await pool.execute(
        "CREATE TABLE telemetry_20200101 PARTITION OF telemetry"
        " FOR VALUES FROM ('2020-01-01Z') TO ('2020-01-02Z')"
    )
    lines = Lines()
    settings = PartitionSettings(days_ahead=10, keep_days=30)
    scope = Scope("p", settings, None, {"postgres": pool}, lines.logger())  # type: ignore[arg-type]
    async with pool.acquire() as reader, reader.transaction():
        await reader.execute("LOCK TABLE telemetry, telemetry_default IN ACCESS SHARE MODE")
        await make_partitions(Context(scope))
        in_use = [e["function"] for e in lines.entries if e["level"] == "warning"]
        assert in_use == ["ensure_telemetry_partitions", "drop_old_telemetry_partitions"]
        await pool.execute("INSERT INTO telemetry SELECT now(), 't', 'd', 's', 'x', 1, '{}'")
    await make_partitions(Context(scope))
    assert lines.entries[-1]["dropped"] == 1
    await pool.close()
