"""Compares the roll-ups of telemetry with the rows, once all marks have become due."""

from functions.ingest.rollups import RollupSettings, roll_up
from runtime.resource.postgres import open_pool
from tests.support.calls import Caller
from tests.support.host import eventually

_TABLES = ("telemetry_minutes", "telemetry_hours", "telemetry_days")


async def assert_all_is_rolled_up(dsn: str) -> None:
    """Assert that every row was marked: the numbers of all rows are in every level, once."""
    pool = await open_pool(dsn, max_size=2)

    async def nothing_is_marked() -> bool:
        await pool.execute("UPDATE rollup_marks SET due_at = now() - interval '1 minute'")
        await roll_up(Caller(pool, settings=RollupSettings()).context())
        return not await pool.fetchval("SELECT count(*) FROM rollup_marks")

    try:
        await eventually(nothing_is_marked, "the roll-ups", 60)
        rows = await pool.fetchrow(
            "SELECT count(*), sum((metrics ->> 'n')::float8) FROM telemetry WHERE metrics ? 'n'"
        )
        for table in _TABLES:
            rolled = await pool.fetchrow(
                f"SELECT sum(count)::bigint, sum(sum) FROM {table} WHERE sensor = 'n'"  # noqa: S608
            )
            assert rolled is not None
            assert rows is not None
            assert tuple(rolled) == tuple(rows), table
    finally:
        await pool.close()
