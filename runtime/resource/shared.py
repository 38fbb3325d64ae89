"""Opens the PostgreSQL pool and HTTP client of a process, and gives each function its share."""

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
    """The PostgreSQL pool and the HTTP client of one process, if its functions use them.

    One pool for all functions, with a share for each, instead of a pool for each: forty functions
    with four connections each are more than the hundred that PostgreSQL accepts by default, and
    several hosts use the same server.

    Args:
        functions: the functions of this process, by name.
        database_url: PostgreSQL's address.
        connections: the most connections that the functions may hold together.
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
        """Whether a function uses the resource."""
        return any(resource in function.spec.uses for function in self._functions.values())

    async def open(self) -> None:
        """Open the resources that are used.

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
        """Close the resources."""
        if self._probe is not None:
            await self._probe.close()
        if self._pool is not None:
            await close_pool(self._pool)
        if self._http is not None:
            await self._http.aclose()

    def of(self, function: Function) -> dict[str, Any]:
        """The resources of a function, by the names in its `uses`."""
        given: dict[str, Any] = {}
        spec = function.spec
        if "http" in spec.uses:
            given["http"] = self._http
        if "postgres" in spec.uses and self._pool is not None:
            given["postgres"] = FunctionPool(self._pool, spec.postgres_connections, spec.timeout)
        return given

    async def check_postgres(self) -> str | None:
        """Probe: PostgreSQL answers.

        Raises:
            Unavailable: PostgreSQL does not answer.
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
