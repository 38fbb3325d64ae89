"""Opens the PostgreSQL pool, migrates the schema, and recognises outages in driver errors."""

import asyncio
import importlib.util
import io
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from runtime.errors import ConfigError, Problem, Unavailable

_CONNECT_TIMEOUT_S = 10.0
_CLOSE_LIMIT_S = 5.0
_SESSION = {"application_name": "runtime", "timezone": "UTC"}
# The same number in every host: the host with this advisory lock migrates, the others wait.
_MIGRATION_LOCK = 7_163_225_046
# SQLSTATE classes: connection exception, insufficient resources, operator intervention (shutdown,
# starting up), system error; and the error of a server that has become a standby.
_OUTAGE_CLASSES = ("08", "53", "57P", "58")
_STANDBY = "25006"


def outage(error: BaseException) -> Unavailable | None:
    """The outage that a driver's error means; None when the statement itself failed.

    The text of the driver's error is left out, because it may contain values.
    """
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        if not state.startswith(_OUTAGE_CLASSES) and state != _STANDBY:
            return None
        return Unavailable("PostgreSQL", f"{type(error).__name__} (SQLSTATE {state})")
    if isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError):
        lost = _is_lost(error)
        return Unavailable("PostgreSQL", "the connection is closed") if lost else None
    if isinstance(error, OSError | TimeoutError):
        return Unavailable("PostgreSQL", f"no answer ({type(error).__name__})")
    return None


def _is_lost(error: asyncpg.InterfaceError | asyncpg.InternalClientError) -> bool:
    """Whether the driver's error means a lost connection, and not a misuse of the driver."""
    if isinstance(error, asyncpg.InternalClientError):
        # A call between the server's last message and the end of the connection.
        return str(error).startswith("cannot switch to state")
    # Only the text distinguishes them: a value that cannot be encoded is a ValueError too.
    return not isinstance(error, ValueError) and "clos" in str(error)


@contextmanager
def outages() -> Iterator[None]:
    """Convert an outage of PostgreSQL in the block to `Unavailable`; other errors pass."""
    try:
        yield
    except (
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
        OSError,
    ) as error:
        unavailable = outage(error)
        if unavailable is None:
            raise
        raise unavailable from error


async def open_pool(dsn: str, *, max_size: int) -> "asyncpg.Pool[asyncpg.Record]":
    """Open a pool and check that the server answers. The caller closes it.

    Raises:
        ConfigError: the address is not valid, or names a user or database that does not exist.
        Unavailable: the server does not answer.
    """
    with _connecting():
        return await asyncpg.create_pool(
            dsn,
            min_size=1,
            max_size=max_size,
            timeout=_CONNECT_TIMEOUT_S,
            server_settings=_SESSION,
        )


async def close_pool(pool: "asyncpg.Pool[asyncpg.Record]") -> None:
    """Close a pool; connections that are not released soon are cut."""
    try:
        await asyncio.wait_for(pool.close(), _CLOSE_LIMIT_S)
    except TimeoutError:
        pool.terminate()


async def connect(dsn: str) -> "asyncpg.Connection[asyncpg.Record]":
    """Open a connection outside of the pool. The caller closes it.

    Raises:
        ConfigError, Unavailable: as for `open_pool`.
    """
    with _connecting():
        return await asyncpg.connect(dsn, timeout=_CONNECT_TIMEOUT_S, server_settings=_SESSION)


async def migrate(dsn: str, packages: Sequence[str]) -> None:
    """Upgrade the schema to the packages' newest versions. Several hosts may call it at once.

    A package contains `versions/NNNN_name.py`, a linear Alembic history whose revisions are the
    numbers, and has a version table of its own. Alembic is imported only when a migration is due,
    because the import takes 0.4 s.

    Raises:
        ConfigError: the address cannot be used, or the database is newer than this program.
        Unavailable: the server does not answer.
    """
    histories = [_history(package) for package in packages]
    async with _connection(dsn) as connection:
        if all([await _place(connection, history) == history.head for history in histories]):
            return
        await connection.execute("SELECT pg_advisory_lock($1)", _MIGRATION_LOCK)
        for history in histories:
            await _upgrade(connection, history)


@dataclass(frozen=True, slots=True)
class _History:
    package: str
    versions: Path
    revisions: tuple[str, ...]

    @property
    def head(self) -> str:
        return self.revisions[-1]

    @property
    def table(self) -> str:
        return "alembic_version_" + self.package.replace(".", "_")


def _history(package: str) -> _History:
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        versions = Path(folder) / "versions"
        revisions = sorted(path.stem.partition("_")[0] for path in versions.glob("[0-9]*_*.py"))
        if revisions:
            return _History(package, versions, tuple(revisions))
    raise ConfigError(
        [
            Problem(
                f"migrations {package}",
                "",
                "no such package, or no versions/NNNN_name.py in it",
                "name a package that holds Alembic versions",
            )
        ]
    )


async def _place(connection: "asyncpg.Connection[asyncpg.Record]", history: _History) -> str | None:
    if await connection.fetchval("SELECT to_regclass($1)", history.table) is None:
        return None
    place: str | None = await connection.fetchval(f'SELECT version_num FROM "{history.table}"')  # noqa: S608 - the name comes from a module path
    return place


async def _upgrade(connection: "asyncpg.Connection[asyncpg.Record]", history: _History) -> None:
    place = await _place(connection, history)
    if place == history.head:
        return
    if place is not None and place not in history.revisions:
        raise ConfigError(
            [
                Problem(
                    "DATABASE_URL",
                    "",
                    f"the database is at version {place} of {history.package}, unknown here",
                    "start a newer release, or restore an older backup",
                )
            ]
        )
    async with connection.transaction():
        await connection.execute(_statements(history, place))


def _statements(history: _History, place: str | None) -> str:
    from alembic.command import upgrade  # noqa: PLC0415 - see migrate
    from alembic.config import Config  # noqa: PLC0415

    output = io.StringIO()
    config = Config(stdout=io.StringIO(), output_buffer=output)
    config.set_main_option("script_location", str(Path(__file__).parent / "migration"))
    config.set_main_option("version_locations", str(history.versions))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_table", history.table)
    upgrade(config, f"{place or 'base'}:{history.head}", sql=True)
    return output.getvalue()


@asynccontextmanager
async def _connection(dsn: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    with _connecting():
        connection = await asyncpg.connect(dsn, timeout=_CONNECT_TIMEOUT_S)
    try:
        yield connection
    finally:
        await connection.close()


@contextmanager
def _connecting() -> Iterator[None]:
    try:
        yield
    except (
        asyncpg.InvalidAuthorizationSpecificationError,
        asyncpg.InvalidCatalogNameError,
        asyncpg.exceptions.ClientConfigurationError,
        ValueError,
    ) as error:
        # The driver's text may repeat the address and with it a password.
        raise ConfigError(
            [
                Problem(
                    "DATABASE_URL",
                    "",
                    f"PostgreSQL cannot be used with it ({type(error).__name__})",
                    "write postgresql://user:password@host:5432/database, and create both",
                )
            ]
        ) from None
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        unavailable = outage(error)
        if unavailable is None:
            raise
        raise unavailable from error


__all__ = ["close_pool", "connect", "migrate", "open_pool", "outage", "outages"]
