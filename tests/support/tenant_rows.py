"""Fills every table of a database with a row of each tenant, whatever tables there are."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg

# Everything but what may be absent, or what the database fills in by itself.
_COLUMNS = """
    SELECT c.oid::regclass::text AS name, a.attname::text AS of_column,
           format_type(coalesce(nullif(t.typbasetype, 0), t.oid), NULL) AS type,
           a.attnotnull OR EXISTS (
               SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND a.attnum = ANY (k.conkey)
           ) AS is_needed,
           a.atthasdef OR a.attidentity <> '' AS is_filled
    FROM pg_class c
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        AND a.attgenerated = ''
    JOIN pg_type t ON t.oid = a.atttypid
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
      AND NOT c.relispartition
    ORDER BY 1, 2
"""
_CHECKS = """
    SELECT conrelid::regclass::text AS name, quote_ident(conname) AS constraint_name
    FROM pg_constraint
    WHERE contype = 'c' AND conrelid <> 0 AND coninhcount = 0
"""
_VALUES = {
    "text": "'n-{n}'",
    "uuid": "gen_random_uuid()",
    "bytea": "sha256('{n}')",
    "timestamp with time zone": "now() + interval '1 hour'",
    "date": "current_date",
    "time without time zone": "'12:00'",
    "integer": "{n}",
    "bigint": "{n}",
    "smallint": "1",
    "double precision": "1",
    "boolean": "true",
    "jsonb": "'{{}}'",
    "json": "'{{}}'",
    "int8range": "'[1,2)'",
    "int8multirange": "'{{[1,2)}}'",
    "text[]": "'{{}}'",
    "smallint[]": "'{{}}'",
    "timestamp with time zone[]": "'{{}}'",
}
# Tables that are about the installation, the database or the erasure itself.
_OTHERS = {"alembic_version", "tenant_erasures"}


async def fill_tables(
    superuser_dsn: str, database: str, tenants: Sequence[str], columns: Mapping[str, str]
) -> set[str]:
    """Give each tenant a row in each table that has one of the columns; the tables' names.

    `columns` has the form in which each column names a tenant, `{}` for the tenant alone.

    Checks and references do not hold for the rows, so the database is to be dropped afterwards. A
    column of a type that is not known here fails.
    """
    connection = await asyncpg.connect(superuser_dsn, database=database)
    try:
        for check in await connection.fetch(_CHECKS):
            await connection.execute(
                f"ALTER TABLE {check['name']} DROP CONSTRAINT {check['constraint_name']}"
            )
        await connection.execute("SET session_replication_role = replica")
        tables: dict[str, list[Any]] = {}
        for row in await connection.fetch(_COLUMNS):
            tables.setdefault(row["name"], []).append(row)
        filled = {
            name
            for name, rows in tables.items()
            if name not in _OTHERS and columns.keys() & {row["of_column"] for row in rows}
        }
        numbers = itertools.count(1000)
        for name, tenant in itertools.product(sorted(filled), tenants):
            wanted = [
                row
                for row in tables[name]
                if row["of_column"] in columns or (row["is_needed"] and not row["is_filled"])
            ]
            values = [
                f"'{columns[row['of_column']].format(tenant)}'"
                if row["of_column"] in columns
                else _VALUES[row["type"]].format(n=next(numbers))
                for row in wanted
            ]
            names = ", ".join(f'"{row["of_column"]}"' for row in wanted)
            await connection.execute(
                f"INSERT INTO {name} ({names}) VALUES ({', '.join(values)})"  # noqa: S608 - of the catalog
            )
    finally:
        await connection.close()
    return filled


async def count_mentions(pool: "asyncpg.Pool[asyncpg.Record]", text: str) -> dict[str, int]:
    """The number of rows of each table that hold the text in any column; others are left out."""
    rows = await pool.fetch(
        "SELECT c.oid::regclass::text AS name FROM pg_class c"
        " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')"
        " AND NOT c.relispartition"
    )
    counts = {
        row["name"]: await pool.fetchval(
            f"SELECT count(*) FROM {row['name']} t WHERE t::text LIKE '%' || $1 || '%'",  # noqa: S608
            text,
        )
        for row in rows
    }
    return {name: count for name, count in counts.items() if count}


__all__ = ["count_mentions", "fill_tables"]
