"""Databases with all migrations: cloned once, and emptied for the next test.

A clone makes 550 files and takes 0.2 s, most of it of the system; to empty one takes 0.02 s. A
database whose tables, functions or other definitions a test has changed is dropped, and so is one
whose rows a test has changed that a migration wrote.
"""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from tests.support.servers import PostgresServer

_CATALOGS = [
    *("pg_class", "pg_attribute", "pg_attrdef", "pg_constraint", "pg_index", "pg_proc", "pg_type"),
    *("pg_trigger", "pg_policy", "pg_rewrite", "pg_depend", "pg_inherits", "pg_extension"),
]
# Each change of a definition writes rows of the catalogs by a later transaction, or removes some.
_DEFINITIONS = "SELECT concat_ws(' ', {})".format(
    ", ".join(
        f"(SELECT (count(*), max(xmin::text::bigint))::text FROM {name})"  # noqa: S608 - names of the list above
        for name in _CATALOGS
    )
)
_OTHERS = """
    SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
_SETTINGS = """
    SELECT count(*) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase
    WHERE d.datname = current_database()
"""
_TABLES = """
    SELECT oid::regclass::text AS name, pg_relation_size(oid) > 262144 AS is_large FROM pg_class
    WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
"""
_SEQUENCES = """
    SELECT setval(format('%I.%I', schemaname, sequencename)::regclass, start_value, false)
    FROM pg_sequences WHERE schemaname = 'public' AND last_value IS NOT NULL
"""


class Databases:
    """The databases of a PostgreSQL for tests of one process.

    Args:
        server: the PostgreSQL.
        template: the name of a database with all migrations, in which no sequence was used.
    """

    def __init__(self, server: PostgresServer, template: str) -> None:
        self._server = server
        self._template = template
        self._numbers = itertools.count(1)
        self._free: list[str] = []
        self._definitions: dict[str, str] = {}
        self._filled: list[str] = []

    async def take(self) -> str:
        """The name of a database as if it were new."""
        if self._free:
            return self._free.pop()
        name = f"test_migrated_{next(self._numbers)}"
        await self._server.make_database(name, template=self._template)
        async with self._inside(name) as connection:
            self._filled = [
                table
                for table, _ in await connection.fetch(_TABLES)
                if await connection.fetchval(f"SELECT EXISTS (SELECT FROM {table})")  # noqa: S608
            ]
            self._definitions[name] = await self._describe(connection)
        return name

    async def give_back(self, name: str) -> None:
        """Disconnect whoever is connected, and empty the database, or drop it."""
        async with self._inside(name) as connection:
            await connection.execute(_OTHERS)
            is_kept = await self._describe(connection) == self._definitions[name]
            if is_kept:
                await self._empty(name, connection)
        if is_kept:
            self._free.append(name)
        else:
            await self._server.administer(f"DROP DATABASE {name} WITH (FORCE)")

    async def _empty(self, name: str, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        # Triggers and references do not matter, as all tables are emptied.
        statements = ["SET session_replication_role = replica"]
        tables = [each for each in await connection.fetch(_TABLES) if each[0] not in self._filled]
        # To truncate a table makes files anew for each of its indexes.
        large = [table for table, is_large in tables if is_large]
        statements += [f"DELETE FROM ONLY {table}" for table, _ in tables if table not in large]  # noqa: S608
        statements += [f"TRUNCATE {table} CASCADE" for table in large]
        await connection.execute("; ".join([*statements, _SEQUENCES]))
        if large:
            self._definitions[name] = await self._describe(connection)

    @asynccontextmanager
    async def _inside(self, name: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        connection = await asyncpg.connect(self._server.superuser_dsn, database=name)
        try:
            yield connection
        finally:
            await connection.close()

    async def _describe(self, connection: "asyncpg.Connection[asyncpg.Record]") -> str:
        parts = [await connection.fetchval(f"{_DEFINITIONS} || ({_SETTINGS})::text")]
        for table in self._filled:
            parts += await connection.fetch(f"SELECT t::text FROM {table} t ORDER BY 1")  # noqa: S608
        return repr(parts)


__all__ = ["Databases"]
