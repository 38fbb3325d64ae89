"""The counterpart of `postgresql`: a table in a database of its own."""

import secrets
from types import TracebackType
from typing import Any, Self

import asyncpg

from tests.support.proxy import Proxy
from tests.support.route_types.counterpart import Arrived, Counterpart, Scene
from tests.support.servers import PostgresServer


class PostgresCounterpart(Counterpart):
    """A table whose names must be quoted, with a unique index on the id.

    Args:
        server: the server, which listens on a Unix socket alone.
        database: its superuser makes the table in it.
    """

    type_name = "postgresql"
    module = "functions.route_delivery.postgresql"
    settings = {"statement_timeout_s": 0.5}  # noqa: RUF012 - the suite changes none
    secrets = ("p4ss of a 'tenant\\",)
    wrong = (
        {"host": "/var/run/postgresql"},
        {"host": "a,b"},
        {"columns": {}},
        {"columns": {"temp": "payload[0]"}},
        {"columns": {"a\x00b": "payload"}},
        {"table": ""},
        {"sslmode": "disable"},
        {"password": ""},
    )

    def __init__(self, server: PostgresServer, database: str) -> None:
        self._dsn = server.superuser_dsn
        self._database = database
        self.proxy = Proxy(server.socket)
        self._lock: asyncpg.Connection[Any] | None = None

    async def __aenter__(self) -> Self:
        self.user = f'theirs_{secrets.token_hex(4)}"x'
        await self.proxy.__aenter__()
        self.admin: asyncpg.Connection[Any] = await self._connect()
        name = '"' + self.user.replace('"', '""') + '"'
        password = self.secrets[0].replace("'", "''")
        await self.admin.execute(
            f"CREATE ROLE {name} LOGIN PASSWORD '{password}';"
            'CREATE TABLE "Their ""rows" ("the id" text PRIMARY KEY, temp float, "All of it" jsonb,'
            " at timestamptz, device text NOT NULL);"
            f'GRANT INSERT, SELECT ON "Their ""rows" TO {name}'
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        name = '"' + self.user.replace('"', '""') + '"'
        if self._lock is not None:
            await self._lock.close()
        await self.admin.execute(f'DROP TABLE "Their ""rows"; DROP ROLE {name}')
        await self.admin.close()
        await self.proxy.__aexit__(kind, error, traceback)

    async def _connect(self) -> "asyncpg.Connection[Any]":
        return await asyncpg.connect(self._dsn, database=self._database)

    def config(self) -> dict[str, Any]:
        return {
            "host": "localhost",
            "port": self.proxy.port,
            "tls": False,
            "database": self._database,
            "user": self.user,
            "password": self.secrets[0],
            "table": 'Their "rows',
            "columns": {
                "temp": "payload.metrics.temp",
                "All of it": "payload",
                "at": "stored_at",
                "device": "device_id",
            },
            "id_column": "the id",
        }

    def at(self, port: int) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"port": port}, {}

    async def arrived(self, count: int) -> list[Arrived]:
        rows = await self.admin.fetch('SELECT "the id", "All of it" FROM "Their ""rows"')
        assert len(rows) >= count
        return [Arrived(row[0], row[1]) for row in rows]

    async def refused(self) -> Scene:
        return Scene("ROW_NOT_ACCEPTED", payload={"metrics": {"temp": "warm"}})

    async def failed(self) -> Scene:
        self._lock = await self._connect()
        await self._lock.execute('BEGIN; LOCK TABLE "Their ""rows"')
        return Scene("TIMEOUT")
