"""Opens the PostgreSQL pool and HTTP clients of a process, and gives each function its share."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from runtime.addresses import AddressPolicy, parse_networks
from runtime.context import SystemPort
from runtime.errors import ConfigError, Problem
from runtime.loader import Function
from runtime.manifest.model import HttpClientSpec
from runtime.resource.function_pool import FunctionPool
from runtime.resource.http import open_http
from runtime.resource.postgres import close_pool, open_pool
from runtime.resource.postgres_probe import PostgresProbe
from runtime.resource.session_check import check_session

if TYPE_CHECKING:
    import asyncpg
    import httpx


class ClosablePort(SystemPort, Protocol):
    """A connection to the system account, which its owner closes."""

    async def close(self) -> None:
        """Close the connection."""


class SharedResources:
    """The PostgreSQL pool and the HTTP clients of one process, if its functions use them.

    Functions with the same `http_client` share one, and so its connections.

    One pool for all functions, with a share for each, instead of a pool for each: forty functions
    with four connections each are more than the hundred that PostgreSQL accepts by default, and
    several hosts use the same server.

    Args:
        functions: the functions of this process, by name; a reload adds others with `open_for`.
        database_url: PostgreSQL's address.
        connections: the most connections that the functions may hold together.
        open_system: connects to the system account of NATS; None when its address is unknown.
    """

    def __init__(
        self,
        functions: Mapping[str, Function],
        database_url: str | None,
        connections: int,
        open_system: Callable[[], Awaitable[ClosablePort]] | None = None,
    ) -> None:
        self._open_system = open_system
        self._system: ClosablePort | None = None
        self._functions = dict(functions)
        self._database_url = database_url
        self._connections = connections
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._http: dict[HttpClientSpec, httpx.AsyncClient] = {}
        self._probe: PostgresProbe | None = None
        self._shares: dict[str, FunctionPool] = {}

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
        problems = [found for each in self._functions.values() if (found := self._check(each))]
        if problems:
            raise ConfigError(problems)
        await self._open()

    async def open_for(self, function: Function) -> None:
        """Open what a new or changed function uses and no function has used before.

        Raises:
            ConfigError: as `open`, or the host has no address of PostgreSQL.
            Unavailable: PostgreSQL does not answer.
        """
        if problem := self._check(function):
            raise ConfigError([problem])
        before = dict(self._functions)
        self._functions[function.name] = function
        try:
            await self._open()
        except BaseException:
            self._functions = before
            raise

    async def _open(self) -> None:
        for each in self._functions.values():
            wanted = each.spec.http_client
            if "http" in each.spec.uses and wanted not in self._http:
                self._http[wanted] = open_http(_policy_of(wanted))
        if self.uses("postgres") and self._pool is None:
            if self._database_url is None:
                raise ValueError("a function uses postgres, but no address was given")
            await check_session(self._database_url)
            self._pool = await open_pool(self._database_url, max_size=self._connections)
            self._probe = PostgresProbe(self._database_url)

        if self.uses("nats_system") and self._system is None and self._open_system is not None:
            self._system = await self._open_system()

    async def close(self) -> None:
        """Close the resources."""
        if self._system is not None:
            await self._system.close()
        if self._probe is not None:
            await self._probe.close()
        if self._pool is not None:
            await close_pool(self._pool)
        for client in self._http.values():
            await client.aclose()

    def of(self, function: Function) -> dict[str, Any]:
        """The resources of a function, by the names in its `uses`."""
        given: dict[str, Any] = {}
        spec = function.spec
        if "http" in spec.uses:
            given["http"] = self._http.get(spec.http_client)
        if "nats_system" in spec.uses:
            given["nats_system"] = self._system
        if "postgres" in spec.uses and self._pool is not None:
            given["postgres"] = self._share_of(function, self._pool)
        return given

    def follow_timeout(self, function: Function) -> None:
        """Let a function's share of the pool follow its time limit."""
        if share := self._shares.get(function.name):
            share.follow_timeout(function.spec.timeout)

    def drop(self, function: str) -> None:
        """Forget a removed function; what was opened stays open."""
        self._functions.pop(function, None)
        self._shares.pop(function, None)

    async def check_postgres(self) -> str | None:
        """Probe: PostgreSQL answers.

        Raises:
            Unavailable: PostgreSQL does not answer.
        """
        if self._probe is None:
            return "STARTING"
        await self._probe.check()
        return None

    def _share_of(self, function: Function, pool: "asyncpg.Pool[asyncpg.Record]") -> FunctionPool:
        """The function's share, which its old and its new version have together."""
        spec, share = function.spec, self._shares.get(function.name)
        if share is None or share.connections != spec.postgres_connections:
            share = FunctionPool(pool, spec.postgres_connections, spec.timeout)
            self._shares[function.name] = share
        return share

    def _check(self, function: Function) -> Problem | None:
        spec, where = function.spec, f"function {function.name}"
        if "postgres" not in spec.uses:
            return None
        if self._database_url is None:
            wrong = "needs PostgreSQL, and the host has no DATABASE_URL"
            return Problem(where, "uses", wrong, "start the host again")
        if spec.postgres_connections <= self._connections:
            return None
        wrong = f"is {spec.postgres_connections}, and the process has {self._connections}"
        remedy = "lower it, or raise RUNTIME_POSTGRES_CONNECTIONS"
        return Problem(where, "postgres_connections", wrong, remedy)


def _policy_of(spec: HttpClientSpec) -> AddressPolicy | None:
    return AddressPolicy(parse_networks(spec.allowed_networks)) if spec.guard else None


__all__ = ["SharedResources"]
