"""Pytest fixtures for tests of functions.

Pytest loads this module in every run of an environment that has the package installed, so it
imports nothing of the runtime until a fixture is used.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from runtime.testing.servers import TestServer


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--real-nats`."""
    group = parser.getgroup("functions on NATS")
    group.addoption(
        "--real-nats",
        action="store_true",
        help="the fixture function_server is a real nats-server, not the one in memory",
    )


@pytest.fixture(scope="session")
def embedded_nats() -> "Iterator[TestServer]":
    """A nats-server with JetStream for the whole run, on a free port; its address is `url`."""
    from runtime.testing.servers import TestServer  # noqa: PLC0415 - see above

    with TestServer("nats") as server:
        yield server


@pytest.fixture(scope="session")
def embedded_postgres_server() -> "Iterator[TestServer]":
    """A PostgreSQL server for the whole run."""
    from runtime.testing.servers import TestServer  # noqa: PLC0415 - see above

    with TestServer("postgres") as server:
        yield server


@pytest.fixture
def embedded_postgres(embedded_postgres_server: "TestServer") -> str:
    """The address of a new, empty database for one test."""
    return embedded_postgres_server.make_database()


@pytest.fixture
def function_server(request: pytest.FixtureRequest) -> "TestServer | None":
    """What `TestHost(server=…)` takes: None for memory, a nats-server with `--real-nats`."""
    if not request.config.getoption("--real-nats"):
        return None
    server: TestServer = request.getfixturevalue("embedded_nats")
    return server
