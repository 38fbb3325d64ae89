"""Inserts jobs as rows into a table of a tenant's own PostgreSQL.

PostgreSQL converts each value to its column's type (`json_populate_record`), so a mapping names
columns and paths, and no types.
"""

import asyncio
import json
import ssl
import struct
from typing import Annotated, Any, NamedTuple, cast

import asyncpg
from pydantic import Field, SecretStr, StringConstraints

from functions.outbound.receipt import EndpointHealth, Outcome, Receipt
from functions.outbound.transport.faults import (
    AnswerTimeout,
    ConnectionLost,
    ConnectTimeout,
    DestinationRefused,
    Fault,
    TlsFailed,
)
from functions.outbound.transport.postgres_frames import PostgresFrames
from functions.outbound.transport.relay import GuardedLoop, Relay
from functions.outbound.transport.streams import Stream
from functions.route_delivery.connected_sender import ConnectedSender, Target, sender_hooks
from functions.route_delivery.deliverer import deliverer
from functions.route_delivery.destinations import EndpointKey
from functions.route_delivery.guarded import (
    CONNECT_OVERTIME_S,
    GuardedSettings,
    fingerprint,
    not_json,
    receipt_of,
)
from functions.route_delivery.host_names import HostName, Port
from functions.route_delivery.job import Job
from functions.route_delivery.templates import FieldPath, look_up
from functions.route_delivery.tls_fields import TlsFields
from runtime import Context

MAX_COLUMNS = 100
MAX_ANSWER_BYTES = 262_144
"""How much a server may send for one row, the login included; it sends about 1 kB."""

_MAX_CONNECTIONS = 4
# Its length, and the code of the request. Source: PostgreSQL, "Message Formats", SSLRequest.
_TLS_REQUEST = struct.pack("!II", 8, 80_877_103)

_IDENTIFIER = r"^[^\x00-\x1f\x7f]{1,63}$"
Identifier = Annotated[str, StringConstraints(pattern=_IDENTIFIER)]


class Settings(GuardedSettings):
    """Settings of the delivery to PostgreSQL.

    Attributes:
        statement_timeout_s: after which a server ends an INSERT, such as one that waits for a lock.
    """

    timeout_s: Annotated[float, Field(gt=0, le=120)] = 10.0
    per_endpoint: Annotated[int, Field(ge=1, le=1000)] = _MAX_CONNECTIONS
    statement_timeout_s: Annotated[float, Field(ge=0.1, le=120)] = 8.0


class Destination(TlsFields):
    """The `destination_config` of a route of type `postgresql`.

    Attributes:
        host: the server's name or address.
        tls: connect with TLS, and check the certificate against `host`.
        user: a user that may insert into the table; it needs no other right.
        table_schema: the schema of the table.
        table: where the rows go.
        columns: for each column the path of its value, such as `payload.metrics.temp`; a value that
            a message lacks is NULL.
        id_column: gets the job's id, and must have a unique index of its own: a job that is sent
            twice makes one row. Without it, a job may make two.
    """

    host: HostName
    port: Port = 5432
    tls: bool = True
    database: Annotated[str, StringConstraints(min_length=1, max_length=63)]
    user: Annotated[str, StringConstraints(min_length=1, max_length=63)]
    password: Annotated[SecretStr, Field(min_length=1, max_length=1024)]
    table_schema: Identifier = "public"
    table: Identifier
    columns: Annotated[
        dict[Identifier, FieldPath],
        Field(
            min_length=1,
            max_length=MAX_COLUMNS,
            # pydantic says what values the right names have, and nothing of other names.
            json_schema_extra={"propertyNames": {"pattern": _IDENTIFIER}},
        ),
    ]
    id_column: Identifier | None = None


def endpoint_of(destination: Destination) -> EndpointKey:
    """The endpoint is server, database and user; its origin is the server, as connected to."""
    server = f"postgresql://{destination.host}:{destination.port}"
    key = fingerprint(destination.database, destination.user)
    return EndpointKey(f"{server} {key}", destination.origin_at(server))


class Login(NamedTuple):
    """Which database, and who connects to it."""

    database: str
    user: str
    password: str


class NotPostgres(Fault):
    """The server's answers are not those of PostgreSQL."""

    code, reason = "PROTOCOL_ERROR", "the server did not speak PostgreSQL's protocol"


class PostgresConnection:
    """A connection, and what relays its bytes."""

    def __init__(self, connection: "asyncpg.Connection[Any]", relay: Relay) -> None:
        self._connection = connection
        self._relay = relay

    @property
    def is_open(self) -> bool:
        """Whether the server has not closed the connection, as far as is known."""
        return self._relay.is_open and not self._connection.is_closed()

    async def insert(self, statement: str, row: str, *, timeout_ms: int) -> None:
        """Insert a row; returns when it is committed."""
        self._relay.renew()
        connection = self._connection
        try:
            # Not a setting of the session: a pooler would give it to the next session.
            await connection.execute(f"BEGIN; SET LOCAL statement_timeout = {timeout_ms}")
            await connection.execute(statement, row)
            await connection.execute("COMMIT")
        except asyncpg.InternalClientError:
            raise NotPostgres from None
        except (OSError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError):
            raise ConnectionLost from None

    def close(self) -> None:
        """Close at once; the server rolls back."""
        self._connection.terminate()
        self._relay.close()


class Sender(ConnectedSender[Login, PostgresConnection]):
    """Inserts rows, over connections that wait for the next one.

    Args:
        settings: the function's.
        tls: trusts the public authorities.
    """

    def __init__(self, settings: Settings, tls: ssl.SSLContext) -> None:
        super().__init__(settings, tls, max_per_target=_MAX_CONNECTIONS)
        self._statement_timeout_ms = round(settings.statement_timeout_s * 1000)

    async def insert(self, tenant_id: str, to: Destination, row: str) -> None:
        """Insert a row, a JSON object; returns when it is committed.

        Raises:
            DestinationRefused: the policy allows no address of the server.
            Fault: no answer.
            asyncpg.PostgresError: the server refused the login or the row.
        """
        login = Login(to.database, to.user, to.password.get_secret_value())
        statement, timeout_ms = insert_statement(to), self._statement_timeout_ms
        await self._run(
            Target(tenant_id, to.host, to.port, to.tls, to.certificates, login),
            lambda connection: connection.insert(statement, row, timeout_ms=timeout_ms),
        )

    async def _connect(self, to: Target[Login]) -> PostgresConnection:
        tls = await self._tls.of(to.certificates) if to.tls else None

        async def begin(stream: Stream) -> None:
            if tls is not None:
                await _start_tls(stream, tls, to.host)

        loop = GuardedLoop(
            self._dialer,
            begin,
            PostgresFrames,
            timeout_s=self._timeout_s,
            max_bytes=MAX_ANSWER_BYTES,
        )
        connection: asyncpg.Connection[Any] | None = None
        try:
            # Every argument that asyncpg would else take from the environment or a file.
            connection = await asyncpg.connect(
                loop=cast("asyncio.AbstractEventLoop", loop),
                host=to.host,
                port=to.port,
                user=to.login.user,
                password=to.login.password,
                database=to.login.database,
                # What it would see inside of TLS has to be looked at before.
                ssl=False,
                timeout=self._timeout_s,
                statement_cache_size=0,
                server_settings={"application_name": "route delivery"},
            )
        except asyncpg.InternalClientError:
            raise NotPostgres from None
        except (OSError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError) as failure:
            raise _fault_of(failure, is_connected=bool(loop.relays)) from None
        finally:
            if connection is None:
                for relay in loop.relays:
                    relay.close()
        return PostgresConnection(connection, loop.relays[-1])


async def _start_tls(stream: Stream, context: ssl.SSLContext, host: str) -> None:
    """Ask for TLS as the protocol has it.

    Raises:
        TlsFailed: the server has none, or one that is not accepted.
    """
    await stream.write(_TLS_REQUEST)
    if await stream.read_exactly(1) != b"S":
        raise TlsFailed
    await stream.start_tls(context, host)


def _fault_of(failure: Exception, *, is_connected: bool) -> Fault:
    """The fault that an exception of `asyncpg.connect` stands for."""
    if isinstance(failure, TimeoutError):
        return AnswerTimeout() if is_connected else ConnectTimeout()
    return ConnectionLost()


def insert_statement(to: Destination) -> str:
    """The INSERT of a route; every name is quoted, every value is in the one parameter."""
    names = [*to.columns, *([to.id_column] if to.id_column else [])]
    columns = ", ".join(map(quoted, names))
    table = f"{quoted(to.table_schema)}.{quoted(to.table)}"
    conflict = f" ON CONFLICT ({quoted(to.id_column)}) DO NOTHING" if to.id_column else ""
    return (
        f"INSERT INTO {table} ({columns}) SELECT {columns}"  # noqa: S608 - quoted
        f" FROM json_populate_record(NULL::{table}, $1::text::json){conflict}"
    )


def quoted(identifier: str) -> str:
    """An identifier as SQL."""
    return '"' + identifier.replace('"', '""') + '"'


def encode_row(job: Job, to: Destination) -> str:
    """The row as a JSON object.

    Raises:
        ValueError: a value is one that JSON or PostgreSQL lacks.
    """
    row = {name: look_up(path, job) for name, path in to.columns.items()}
    if to.id_column:
        row[to.id_column] = job.job_id
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    text.encode()
    return text


async def send(job: Job, destination: Destination, ctx: Context[Sender]) -> Receipt:
    """Insert one job's row."""
    try:
        row = encode_row(job, destination)
    except ValueError:
        return not_json()
    try:
        await ctx.state.insert(job.tenant_id, destination, row)
    except (DestinationRefused, Fault) as fault:
        return receipt_of(fault)
    except asyncpg.PostgresError as refusal:
        return judge(refusal)
    return Receipt("delivered")


_CODES = {
    "28": ("AUTHENTICATION_FAILED", "the server did not accept the user or password"),
    "3D000": ("DATABASE_NOT_FOUND", "the server has no such database"),
    "42501": ("NOT_PERMITTED", "the user may not insert into the table"),
    "42P01": ("TABLE_NOT_FOUND", "the database has no such table"),
    "3F000": ("TABLE_NOT_FOUND", "the database has no such schema"),
    "42703": ("COLUMN_NOT_FOUND", "the table has no such column"),
    "42P10": ("NO_UNIQUE_INDEX", "the column for the job's id has no unique index"),
    "57014": ("TIMEOUT", "the server did not insert the row in time"),
    "53": ("SERVER_BUSY", "the server has no capacity at present"),
    "57P": ("SERVER_BUSY", "the server is starting or shutting down"),
    "22": ("ROW_NOT_ACCEPTED", "a value does not fit its column"),
    "23": ("ROW_NOT_ACCEPTED", "a constraint of the table refuses the row"),
}
_PERMANENT = "ROW_NOT_ACCEPTED"
_HEALTH: dict[str, EndpointHealth] = {"SERVER_BUSY": "throttled", _PERMANENT: "answered"}
_LONGEST_CODE, _SHORTEST_CODE = 5, 2


def judge(refusal: asyncpg.PostgresError) -> Receipt:
    """The result that a server's error stands for; the log keeps its text, which is the tenant's.

    Only an error that is the row's own is final: table, columns and rights can be mended while the
    job waits.
    """
    state = str(refusal.sqlstate or "XX000")
    for length in range(_LONGEST_CODE, _SHORTEST_CODE - 1, -1):
        if found := _CODES.get(state[:length]):
            code, reason = found
            break
    else:
        code, reason = f"SQLSTATE_{state}", "the server refused the row"
    outcome: Outcome = "refused" if code == _PERMANENT else "failed"
    excerpt = f"{state}: {refusal.args[0] if refusal.args else ''}"
    health = _HEALTH.get(code, "failed")
    return Receipt(outcome, code, reason, excerpt=excerpt, health=health)


_open, _close = sender_hooks(Sender)


deliver, start, stop = deliverer(
    "postgresql",
    Destination,
    send,
    endpoint=endpoint_of,
    start=_open,
    stop=_close,
    overtime_s=CONNECT_OVERTIME_S,
)
