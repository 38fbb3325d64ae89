"""Opens what the functions of a process use, and gives each function its share."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from runtime.errors import ConfigError, Problem
from runtime.loader import Function
from runtime.resource.function_pool import FunctionPool
from runtime.resource.http import open_http
from runtime.resource.postgres import close_pool, open_pool
from runtime.resource.postgres_probe import PostgresProbe
from runtime.resource.session_check import check_session

if TYPE_CHECKING:
    import asyncpg
    import httpx


class SharedResources:
    """The PostgreSQL pool and the HTTP client of one process, as far as its functions use them.

    One pool for all functions and a share for each, rather than a pool for each: forty functions
    with four connections each are more than the hundred that PostgreSQL takes by default, and
    several hosts use the same server.

    Args:
        functions: those that run here, by name.
        database_url: PostgreSQL's address.
        connections: how many the functions may hold together.
    """

    def __init__(
        self, functions: Mapping[str, Function], database_url: str | None, connections: int
    ) -> None:
        self._functions = functions
        self._database_url = database_url
        self._connections = connections
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._http: httpx.AsyncClient | None = None
        self._probe: PostgresProbe | None = None

    def uses(self, resource: str) -> bool:
        """Whether a function needs it."""
        return any(resource in function.spec.uses for function in self._functions.values())

    async def open(self) -> None:
        """Open what is used.

        Raises:
            ConfigError: the address cannot be used, it leads through a pooler in transaction mode,
                or a function's share is larger than the pool.
            Unavailable: PostgreSQL does not answer.
        """
        if self.uses("http"):
            self._http = open_http()
        if self.uses("postgres"):
            if self._database_url is None:
                raise ValueError("a function uses postgres, but no address was given")
            self._check_shares()
            await check_session(self._database_url)
            self._pool = await open_pool(self._database_url, max_size=self._connections)
            self._probe = PostgresProbe(self._database_url)

    async def close(self) -> None:
        """Close what was opened."""
        if self._probe is not None:
            await self._probe.close()
        if self._pool is not None:
            await close_pool(self._pool)
        if self._http is not None:
            await self._http.aclose()

    def of(self, function: Function) -> dict[str, Any]:
        """What a function is given, by the names in its `uses`."""
        given: dict[str, Any] = {}
        spec = function.spec
        if "http" in spec.uses:
            given["http"] = self._http
        if "postgres" in spec.uses and self._pool is not None:
            given["postgres"] = FunctionPool(self._pool, spec.postgres_connections, spec.timeout)
        return given

    async def check_postgres(self) -> str | None:
        """A probe: PostgreSQL answers.

        Raises:
            Unavailable: it does not.
        """
        if self._probe is None:
            return "STARTING"
        await self._probe.check()
        return None

    def _check_shares(self) -> None:
        problems = [
            Problem(
                f"function {name}",
                "postgres_connections",
                f"is {function.spec.postgres_connections}, and the process has {self._connections}",
                "lower it, or raise RUNTIME_POSTGRES_CONNECTIONS",
            )
            for name, function in self._functions.items()
            if "postgres" in function.spec.uses
            and function.spec.postgres_connections > self._connections
        ]
        if problems:
            raise ConfigError(problems)


__all__ = ["SharedResources"]
