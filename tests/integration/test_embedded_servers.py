"""The embedded servers as a host uses them: started, shared, killed, recovered."""

import asyncio
import os
import shutil
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import asyncpg
import nats
import nats.js.errors
import psutil
import pytest
import structlog

from runtime.embedded.processes import find_orphans, has_ended
from runtime.embedded.servers import EmbeddedServers
from runtime.embedded.supervision import ServerSupervisor
from runtime.errors import ConfigError
from runtime.settings import HostSettings
from tests.support.servers import wait_until

# A host that only runs its embedded servers, until a test kills it.
_HOST = """
import asyncio, sys
from pathlib import Path
from runtime.embedded.servers import EmbeddedServers
from runtime.observe.logs import configure_logs
from runtime.settings import HostSettings

async def main():
    configure_logs("ERROR")
    servers = EmbeddedServers(HostSettings(
        data_dir=Path(sys.argv[1]), nats_port=0, monitor_port=0, mqtt_port=0))
    environment = await servers.start()
    print(environment["NATS_URL"], environment["DATABASE_URL"], flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def _settings(directory: Path, **given: object) -> HostSettings:
    ports = {"nats_port": 0, "monitor_port": 0, "mqtt_port": 0}
    return HostSettings.model_validate({"data_dir": directory / "data", **ports, **given})


@asynccontextmanager
async def _serving(settings: HostSettings) -> AsyncIterator[tuple[EmbeddedServers, dict[str, str]]]:
    servers = EmbeddedServers(settings)
    environment = await servers.start()
    try:
        yield servers, environment
    finally:
        await servers.stop()


@asynccontextmanager
async def _host(directory: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str, str]]:
    """A host in a process of its own, with the addresses of its servers."""
    host = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _HOST, directory / "data", stdout=asyncio.subprocess.PIPE
    )
    try:
        assert host.stdout is not None
        nats_url, dsn = (await host.stdout.readline()).decode().split()
        yield host, nats_url, dsn
    finally:
        if host.returncode is None:
            host.kill()
        await host.wait()


def _servers_of(directory: Path) -> list[psutil.Process]:
    data = (directory / "data").resolve()
    return [
        *find_orphans("nats-server", str(data / "nats" / "nats.conf")),
        *find_orphans("postgres", str(data / "postgres" / "data")),
    ]


async def _store(environment: dict[str, str], text: str) -> None:
    client = await nats.connect(environment["NATS_URL"])
    stream = client.jetstream()
    await stream.add_stream(name="KEPT", subjects=["kept"])
    await stream.publish("kept", text.encode())
    await client.close()
    connection = await asyncpg.connect(environment["DATABASE_URL"])
    await connection.execute("CREATE TABLE IF NOT EXISTS kept (text text)")
    await connection.execute("INSERT INTO kept VALUES ($1)", text)
    await connection.close()


async def _stored(environment: dict[str, str]) -> tuple[int, list[str]]:
    client = await nats.connect(environment["NATS_URL"])
    state = (await client.jetstream().stream_info("KEPT")).state
    await client.close()
    connection = await asyncpg.connect(environment["DATABASE_URL"])
    rows = await connection.fetch("SELECT text FROM kept")
    await connection.close()
    return state.messages, [row["text"] for row in rows]


async def test_data_of_both_servers_is_there_after_a_restart(server_directory: Path) -> None:
    async with _serving(_settings(server_directory)) as (_, environment):
        await _store(environment, "first")
    assert _servers_of(server_directory) == []
    async with _serving(_settings(server_directory)) as (_, environment):
        assert await _stored(environment) == (1, ["first"])
    assert _servers_of(server_directory) == []


async def test_secrets_are_made_once_and_only_their_owner_may_read_them(
    server_directory: Path,
) -> None:
    async with _serving(_settings(server_directory)) as (_, first):
        data = server_directory / "data"
        secrets = ("admin.key", "secrets.key", "mqtt.password", "postgres.password")
        for name in secrets:
            assert (data / name).stat().st_mode & 0o777 == 0o600
        for folder in (data / "nats", data / "postgres"):
            assert folder.stat().st_mode & 0o777 == 0o700
        assert (data / "admin.key").read_text().strip() == first["ADMIN_KEY"]
        config = (data / "nats" / "nats.conf").read_text()
        assert first["MQTT_ADMIN_PASSWORD"] not in config
    async with _serving(_settings(server_directory)) as (_, second):
        assert second["ADMIN_KEY"] == first["ADMIN_KEY"]
        assert second["SECRETS_KEYS"] == first["SECRETS_KEYS"]
        assert second["MQTT_ADMIN_PASSWORD"] == first["MQTT_ADMIN_PASSWORD"]


async def test_addresses_that_are_given_leave_nothing_to_embed(server_directory: Path) -> None:
    settings = _settings(
        server_directory, nats_url="nats://elsewhere:4222", database_url="postgresql://elsewhere/db"
    )
    async with _serving(settings) as (_, environment):
        assert environment == {
            "NATS_URL": "nats://elsewhere:4222",
            "DATABASE_URL": "postgresql://elsewhere/db",
        }
    assert not (server_directory / "data").exists()


async def test_only_the_missing_server_is_embedded(server_directory: Path) -> None:
    settings = _settings(server_directory, database_url="postgresql://elsewhere/db")
    async with _serving(settings) as (servers, environment):
        assert environment["DATABASE_URL"] == "postgresql://elsewhere/db"
        assert servers.postgres is None
        client = await nats.connect(environment["NATS_URL"])
        await client.close()


async def test_a_second_host_on_the_same_data_is_refused_by_name(server_directory: Path) -> None:
    async with _serving(_settings(server_directory)) as (_, environment):
        with pytest.raises(ConfigError) as refused:
            await EmbeddedServers(_settings(server_directory)).start()
        assert str(server_directory / "data") in str(refused.value)
        assert str(os.getpid()) in str(refused.value)
        await _store(environment, "untouched")


async def test_a_data_directory_that_cannot_be_used_is_named(server_directory: Path) -> None:
    (server_directory / "data").write_bytes(b"a file")
    with pytest.raises(ConfigError, match=r"data: .*cannot be used \(Not a directory\)"):
        await EmbeddedServers(_settings(server_directory)).start()


async def test_every_taken_port_is_named_with_its_variable(server_directory: Path) -> None:
    with socket.socket() as first, socket.socket() as second:
        for listener in (first, second):
            listener.bind(("127.0.0.1", 0))
            listener.listen()
        ports = first.getsockname()[1], second.getsockname()[1]
        settings = _settings(server_directory, nats_port=ports[0], mqtt_port=ports[1])
        with pytest.raises(ConfigError) as refused:
            await EmbeddedServers(settings).start()
    text = str(refused.value)
    for part in (f"port {ports[0]}", f"port {ports[1]}", "RUNTIME_NATS_PORT", "RUNTIME_MQTT_PORT"):
        assert part in text
    assert f"process {os.getpid()}" in text
    assert _servers_of(server_directory) == []


async def test_one_port_for_two_listeners_is_refused(server_directory: Path) -> None:
    settings = _settings(server_directory, nats_port=45678, mqtt_port=45678)
    with pytest.raises(ConfigError, match=r"RUNTIME_NATS_PORT or RUNTIME_MQTT_PORT"):
        await EmbeddedServers(settings).start()


async def test_damaged_data_is_a_clear_error_and_leaves_nothing_running(
    server_directory: Path,
) -> None:
    async with _serving(_settings(server_directory)):
        pass
    (server_directory / "data" / "postgres" / "data" / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(ConfigError, match=r"postgres: .*incompatible.*postgres\.log"):
        await EmbeddedServers(_settings(server_directory)).start()
    assert _servers_of(server_directory) == []


@pytest.mark.parametrize("victims", ["host", "servers", "everything"])
async def test_nothing_stored_is_lost_when_processes_are_killed(
    server_directory: Path, victims: str
) -> None:
    async with _host(server_directory) as (host, nats_url, dsn):
        await _store({"NATS_URL": nats_url, "DATABASE_URL": dsn}, "before the kill")
        servers = _servers_of(server_directory)
        assert len(servers) == 2
        if victims != "host":
            for server in servers:
                server.kill()
        if victims != "servers":
            host.kill()
            await host.wait()
        else:
            host.terminate()
            await host.wait()
    async with _serving(_settings(server_directory)) as (_, environment):
        assert await _stored(environment) == (1, ["before the kill"])
        assert len(_servers_of(server_directory)) == 2


async def test_a_server_that_outlived_its_host_is_ended_and_its_data_taken_over(
    server_directory: Path,
) -> None:
    async with _host(server_directory) as (host, nats_url, dsn):
        await _store({"NATS_URL": nats_url, "DATABASE_URL": dsn}, "by the first host")
        orphans = _servers_of(server_directory)
        # Stopped servers do not receive the signal that the kernel sends at the host's death.
        for orphan in orphans:
            orphan.suspend()
        host.kill()
        await host.wait()
        assert not any(has_ended(orphan) for orphan in orphans)
    async with _serving(_settings(server_directory)) as (_, environment):
        assert all(has_ended(orphan) for orphan in orphans)
        assert await _stored(environment) == (1, ["by the first host"])


async def test_servers_end_by_themselves_when_their_host_is_killed(server_directory: Path) -> None:
    async with _host(server_directory) as (host, _, _):
        servers = _servers_of(server_directory)
        assert len(servers) == 2
        host.kill()
        await host.wait()
        for server in servers:
            await asyncio.to_thread(wait_until, partial(has_ended, server), "its end")


async def test_a_server_that_dies_while_serving_comes_back_with_its_data(
    server_directory: Path,
) -> None:
    async with _serving(_settings(server_directory)) as (servers, environment):
        await _store(environment, "before")
        assert servers.nats is not None
        assert servers.postgres is not None
        for supervisor in (servers.nats.supervisor, servers.postgres.supervisor):
            first = supervisor.pid
            assert first is not None
            os.kill(first, signal.SIGKILL)
            came_back = partial(_is_another_ready, supervisor, first)
            await asyncio.to_thread(wait_until, came_back, "a restart")
        assert await _stored(environment) == (1, ["before"])


def _is_another_ready(supervisor: ServerSupervisor, first: int) -> bool:
    return supervisor.pid not in (None, first)


@pytest.fixture
def closed_directory(server_directory: Path) -> Path:
    server_directory.chmod(0o700)
    return server_directory


async def test_a_project_in_a_folder_closed_to_other_users_is_served(
    closed_directory: Path,
) -> None:
    # When the test runs as root, PostgreSQL runs as another user, as for a project under /root.
    async with _serving(_settings(closed_directory)) as (_, environment):
        await _store(environment, "within")
        assert await _stored(environment) == (1, ["within"])


def _capabilities(pid: int) -> int:
    """The effective capabilities of a process, as a bit mask."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    raise AssertionError("no capabilities in /proc")


async def test_a_first_start_in_an_open_folder_gives_postgres_no_capability(
    server_directory: Path,
) -> None:
    async with _serving(_settings(server_directory)):
        # Not by the command line: a backend that has just been forked has its parent's.
        pid_file = server_directory / "data" / "postgres" / "data" / "postmaster.pid"
        assert _capabilities(int(pid_file.read_text().splitlines()[0])) == 0


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT pg_ls_dir('/')",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "CREATE ROLE another SUPERUSER",
        "ALTER SYSTEM SET work_mem = '1GB'",
    ],
)
async def test_functions_can_do_nothing_beyond_their_database(
    postgres_dsn: str, statement: str
) -> None:
    connection = await asyncpg.connect(postgres_dsn)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute(statement)
    await connection.close()


_OLD_OBJECTS = """
CREATE TYPE colour AS ENUM ('red');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE SCHEMA other;
CREATE TABLE "Old Table" (id bigint GENERATED ALWAYS AS IDENTITY, number serial, colour colour);
CREATE TABLE parts (day date) PARTITION BY RANGE (day);
CREATE TABLE parts_first PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2026-01-02');
CREATE VIEW seen AS SELECT * FROM "Old Table";
CREATE SEQUENCE other.free;
CREATE FUNCTION other.one(int, text) RETURNS int LANGUAGE sql AS 'SELECT 1';
INSERT INTO "Old Table" (colour) VALUES ('red');
CREATE EXTENSION vector;
"""


async def test_data_of_an_earlier_version_with_one_superuser_is_taken_over(
    server_directory: Path,
) -> None:
    data = server_directory / "data"
    async with _serving(_settings(server_directory)) as (servers, environment):
        assert servers.postgres is not None
        superuser = await asyncpg.connect(servers.postgres.superuser_dsn)
        password = (data / "postgres.password").read_text().strip()
        await superuser.execute("ALTER DATABASE runtime OWNER TO runtime")
        await superuser.execute("DROP ROLE functions")
        await superuser.execute(f"ALTER ROLE runtime PASSWORD '{password}'")
        await superuser.execute(_OLD_OBJECTS)
        await superuser.close()
    (data / "postgres" / "roles").unlink()
    (data / "postgres-superuser.password").unlink()

    async with _serving(_settings(server_directory)) as (_, environment):
        connection = await asyncpg.connect(environment["DATABASE_URL"])
        await connection.execute("INSERT INTO \"Old Table\" (colour) VALUES ('red')")
        assert await connection.fetchval('SELECT count(*) FROM "Old Table"') == 2
        await connection.execute("DROP TABLE parts_first; ALTER TABLE parts ADD COLUMN more int")
        await connection.execute(
            'DROP VIEW seen; DROP TABLE "Old Table"; DROP SCHEMA other CASCADE'
        )
        await connection.execute("DROP TYPE colour; DROP DOMAIN positive")
        assert not await connection.fetchval("SELECT usesuper FROM pg_user WHERE usename = user")
        await connection.close()
        former = environment["DATABASE_URL"].replace("//functions:", "//runtime:")
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(former)


async def test_a_deleted_password_of_postgres_is_made_anew(server_directory: Path) -> None:
    async with _serving(_settings(server_directory)) as (_, environment):
        await _store(environment, "kept")
        first = environment["DATABASE_URL"]
    (server_directory / "data" / "postgres.password").unlink()
    async with _serving(_settings(server_directory)) as (_, environment):
        assert environment["DATABASE_URL"] != first
        assert await _stored(environment) == (1, ["kept"])
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(first)


async def test_a_data_directory_with_a_long_path_is_served_and_leaves_no_folder_behind(
    server_directory: Path,
) -> None:
    deep = server_directory / ("d" * 60) / ("d" * 60)
    deep.mkdir(parents=True, mode=0o711)
    for folder in (deep, deep.parent):
        folder.chmod(0o711)
    async with _serving(_settings(deep)) as (_, environment):
        await _store(environment, "deep")
        listening = environment["DATABASE_URL"].partition("host=")[2].replace("%2F", "/")
        assert stat.S_IMODE(os.lstat(listening).st_mode) == 0o700
        assert not listening.startswith(str(deep))
    assert not os.access(listening, os.F_OK)


async def test_jetstream_is_bounded_by_the_disk_and_leaves_room(server_directory: Path) -> None:
    settings = _settings(server_directory, database_url="postgresql://elsewhere/db")
    async with _serving(settings) as (_, environment):
        client = await nats.connect(environment["NATS_URL"])
        free = shutil.disk_usage(server_directory).free
        with pytest.raises(nats.js.errors.ServerError) as refused:
            await client.jetstream().add_stream(name="VAST", subjects=["vast"], max_bytes=free)
        assert refused.value.err_code == 10047
        await client.close()


async def test_limits_that_a_manifest_states_win_over_the_disk_with_a_warning(
    server_directory: Path,
) -> None:
    settings = _settings(server_directory, database_url="postgresql://elsewhere/db")
    beyond = 2 * shutil.disk_usage(server_directory).total
    servers = EmbeddedServers(settings)
    with structlog.testing.capture_logs() as logged:
        environment = await servers.start(stream_limits={"VAST": beyond, "SMALL": -1})
    try:
        client = await nats.connect(environment["NATS_URL"])
        await client.jetstream().add_stream(name="VAST", subjects=["vast"], max_bytes=beyond)
        await client.close()
    finally:
        await servers.stop()
    [warning] = [line for line in logged if line["log_level"] == "warning"]
    assert warning["stream_limits_bytes"] == beyond
    [chosen] = [line for line in logged if "max_file_bytes" in line]
    assert chosen["max_file_bytes"] > beyond > chosen["disk_room_bytes"]
    # Its limit is known without a manifest too.
    async with _serving(settings) as (_, environment):
        client = await nats.connect(environment["NATS_URL"])
        await client.jetstream().add_stream(name="MORE", subjects=["more"])
        await client.close()
