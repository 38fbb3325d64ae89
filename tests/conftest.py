"""Fixtures for all tests: real servers, started once, with fresh data for each test."""

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from runtime.broker.connection import Broker
from runtime.resource.postgres import migrate
from tests.support.cluster import NatsCluster
from tests.support.databases import Databases
from tests.support.mosquitto import Mosquitto
from tests.support.servers import NatsServer, PostgresServer, remove, run_apart
from tests.support.tls_server import TlsServer, start_tls_server

# Has pytest explain failed assertions in the helper modules as it does in tests.
pytest.register_assert_rewrite("tests.contract")

# An example is not wrong because the machine is busy. CI tries the same examples each time: a fault
# that a new one shows is for whoever runs the tests, and not for the change that CI looks at.
settings.register_profile(
    "tests",
    settings(),
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tests")

# What the tests start shall be ended by signals, even where a shell in the background ignores them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

_ROOT = Path(__file__).parent.parent
_MIGRATIONS = ["functions.domain.migrations"]
_databases = itertools.count(1)


@pytest.fixture
def server_directory() -> Iterator[Path]:
    """A folder for a server that a single test starts, with a path short enough for a socket."""
    directory = Path(tempfile.mkdtemp(prefix="runtime-test-"))
    directory.chmod(0o711)
    yield directory
    remove(directory)


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    """A nats-server whose MQTT listener asks for certificates."""
    directory = tmp_path_factory.mktemp("tls") / "nats"
    server = start_tls_server(tmp_path_factory.mktemp("certificates"), directory)
    yield server
    server.stop()


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    """A Mosquitto broker of the test's own."""
    broker = Mosquitto(tmp_path / "mosquitto")
    yield broker
    broker.stop()


@pytest.fixture(scope="module")
def nats_server() -> Iterator[NatsServer]:
    """A nats-server for one module, with the embedded server's configuration and free ports."""
    directory = Path(tempfile.mkdtemp(prefix="runtime-test-nats-"))
    server = NatsServer(directory)
    yield server
    server.stop()
    remove(directory)


@pytest.fixture
async def broker(nats_server: NatsServer) -> AsyncIterator[Broker]:
    """A connected `Broker`."""
    connected = await Broker.connect(nats_server.url, name="test")
    yield connected
    await connected.close()


@pytest.fixture
async def nats_cluster(server_directory: Path) -> AsyncIterator[NatsCluster]:
    """A JetStream cluster of three nats-servers for one test, which may kill them."""
    cluster = NatsCluster(server_directory)
    try:
        await cluster.wait_until_whole()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One PostgreSQL for the whole run."""
    directory = Path(tempfile.mkdtemp(prefix="runtime-test-postgres-"))
    directory.chmod(0o711)
    server = PostgresServer(directory / "postgres")
    yield server
    server.stop()
    remove(directory)


@pytest.fixture(scope="session")
def template_database(postgres_server: PostgresServer) -> str:
    """The name of a database with all migrations applied, for `postgres_dsn` to clone."""

    async def make() -> None:
        await postgres_server.make_database("migrated")
        await migrate(postgres_server.dsn("migrated"), _MIGRATIONS)

    run_apart(make)
    return "migrated"


@pytest.fixture(scope="session")
def databases(postgres_server: PostgresServer, template_database: str) -> Databases:
    """Databases with all migrations applied, for `postgres_dsn`."""
    return Databases(postgres_server, template_database)


@pytest.fixture
async def postgres_dsn(postgres_server: PostgresServer, databases: Databases) -> AsyncIterator[str]:
    """The address of a database with all migrations applied, and no rows."""
    name = await databases.take()
    yield postgres_server.dsn(name)
    await databases.give_back(name)


@pytest.fixture
async def empty_postgres_dsn(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """The address of a new, empty database."""
    name = f"test_{next(_databases)}"
    await postgres_server.make_database(name)
    yield postgres_server.dsn(name)
    await postgres_server.administer(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def nats_cli() -> Callable[..., str]:
    """Runs the official command line; `nats_cli(server.url, "stream", "ls")` returns its output.

    Keywords are environment variables. With an empty URL the command uses these variables alone.
    """
    built = _ROOT / ".tools" / "nats"
    program = str(built) if built.is_file() else shutil.which("nats")
    if program is None:
        pytest.fail("the nats command line is missing: tools/nats-cli/build builds it, with Go")

    def run(url: str, *arguments: str, stdin: str = "", **environment: str) -> str:
        done = subprocess.run(
            [program, *(("--server", url) if url else ()), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={"PATH": os.defpath, "HOME": tempfile.gettempdir(), "NO_COLOR": "1", **environment},
        )
        assert done.returncode == 0, f"nats {' '.join(arguments)}: {done.stderr}{done.stdout}"
        return done.stdout + done.stderr

    return run
