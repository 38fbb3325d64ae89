"""Real servers for tests: the embedded nats-server and PostgreSQL, on free ports, in a thread."""

import asyncio
import itertools
import shutil
import tempfile
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from runtime.embedded.servers import EmbeddedServers
from runtime.settings import HostSettings
from runtime.testing.errors import TestKitError

T = TypeVar("T")

_START_LIMIT_S = 120.0
_STOP_LIMIT_S = 60.0
_SETTINGS = {"nats_port": 0, "monitor_port": 0, "mqtt_port": 0, "admin_port": 0}
_databases = itertools.count(1)


class TestServer:
    """A running server, as a context manager; its files are deleted at the end.

    It runs on a loop of its own in a thread, so it outlives the loops of tests.

    Args:
        kind: `nats` or `postgres`.

    Attributes:
        url: its address, with the password of the owner.
    """

    __test__ = False

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._directory = Path(tempfile.mkdtemp(prefix="runtime-test-"))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._servers: EmbeddedServers | None = None
        self.url = ""

    def __enter__(self) -> Self:
        """Start it.

        Raises:
            TestKitError: it does not start; with the server's reason.
        """
        self._directory.chmod(0o711)  # For PostgreSQL, which runs as another user than root.
        self._thread.start()
        try:
            self.url = self._run(self._start, _START_LIMIT_S)
        except Exception as failure:
            self.__exit__(None, None, None)
            told = f"the {self._kind} server for tests does not start: {failure}"
            raise TestKitError(told) from failure
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop it."""
        if self._servers is not None:
            self._run(self._servers.stop, _STOP_LIMIT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def make_database(self) -> str:
        """The address of a new, empty database of a PostgreSQL server."""
        name = f"test_{next(_databases)}"

        async def make() -> None:
            if self._servers is None or self._servers.postgres is None:
                raise TestKitError("this is no PostgreSQL server")
            connection = await asyncpg.connect(self._servers.postgres.superuser_dsn)
            try:
                owner = urlsplit(self.url).username
                await connection.execute(f'CREATE DATABASE {name} OWNER "{owner}"')
            finally:
                await connection.close()

        self._run(make, _START_LIMIT_S)
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))

    async def _start(self) -> str:
        wants_postgres = self._kind == "postgres"
        elsewhere = "nats://in-no-use" if wants_postgres else None
        settings = HostSettings.model_validate(
            {**_SETTINGS, "data_dir": self._directory, "nats_url": elsewhere}
        )
        servers = EmbeddedServers(settings)
        made = await servers.start(postgres=wants_postgres)
        self._servers = servers
        return made["DATABASE_URL" if wants_postgres else "NATS_URL"]

    def _run(self, work: Callable[[], Awaitable[T]], limit_s: float) -> T:
        async def run() -> Any:  # noqa: ANN401 - as `work`
            return await work()

        result: T = asyncio.run_coroutine_threadsafe(run(), self._loop).result(limit_s)
        return result
