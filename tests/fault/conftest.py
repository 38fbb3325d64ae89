"""Fixtures of servers that a test may kill."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault.scene import Servers
from tests.support.servers import NatsServer, PostgresServer


@pytest.fixture
def nats(server_directory: Path) -> Iterator[NatsServer]:
    """A nats-server for one test."""
    server = NatsServer(server_directory / "nats")
    yield server
    server.stop()


@pytest.fixture
def postgres(postgres_server: PostgresServer, postgres_dsn: str) -> Iterator[PostgresServer]:
    """The run's PostgreSQL with a new database; it is running again after the test."""
    yield postgres_server
    postgres_server.revive()


@pytest.fixture
def servers(nats: NatsServer, postgres_dsn: str, tmp_path: Path) -> Servers:
    """A nats-server and a new database."""
    return Servers(nats.url, postgres_dsn, tmp_path)
