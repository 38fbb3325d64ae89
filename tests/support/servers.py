"""Real servers for tests, independent of event loops: a session fixture outlives a test's loop."""

import asyncio
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import psutil

from runtime.embedded.credentials import host_url, system_url
from runtime.embedded.nats_config import (
    NatsPasswords,
    NatsPorts,
    find_nats_server,
    render,
)
from runtime.embedded.nats_ports import read_ports
from runtime.embedded.postgres_cluster import PostgresCluster
from runtime.embedded.postgres_roles import DATABASE, FUNCTIONS, Passwords
from runtime.embedded.processes import launch_command
from runtime.nkeys import AccountKey

T = TypeVar("T")

_DEADLINE_S = 60.0


def wait_until(condition: Callable[[], T | None], what: str, timeout_s: float = _DEADLINE_S) -> T:
    """The first true value of `condition`. Only fixtures may poll."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise TimeoutError(f"{what} did not come within {timeout_s:g} s")


def nats_program() -> str:
    """The nats-server to test: TEST_NATS_SERVER, or the one installed with the runtime."""
    return os.environ.get("TEST_NATS_SERVER") or str(find_nats_server())


class NatsServer:
    """A nats-server with the embedded server's configuration, on ports that it chose itself.

    A restart keeps the ports and the data.
    """

    mqtt_user = "service_pulse"
    mqtt_password = 'a password, \\"quoted\\"'
    password = "the-password-of-the-host"
    anonymous = True
    shared_mqtt_user = True
    issuer = AccountKey(bytes(range(32)))
    max_file = 10**15

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ports = NatsPorts()
        self._passwords = NatsPasswords(host=self.password, mqtt=self.mqtt_password)
        self._child: subprocess.Popen[bytes] | None = None
        (directory / "ports").mkdir(parents=True)
        self.start()

    @property
    def url(self) -> str:
        """The address for the host and its operator."""
        return host_url(self.ports.nats, self.password)

    @property
    def system_url(self) -> str:
        """The address of the system account."""
        return system_url(self.ports.nats, self.password)

    @property
    def anonymous_url(self) -> str:
        """The address for a client without a name."""
        return f"nats://127.0.0.1:{self.ports.nats}"

    @property
    def port(self) -> int:
        return self.ports.nats

    @property
    def monitor_port(self) -> int:
        return self.ports.monitor

    @property
    def monitor_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.monitor}"

    @property
    def mqtt_port(self) -> int:
        return self.ports.mqtt

    @property
    def pid(self) -> int:
        assert self._child is not None, "the server is not running"
        return self._child.pid

    @property
    def log(self) -> str:
        return (self.directory / "nats-server.log").read_text(encoding="utf-8")

    def start(self) -> None:
        config = self.directory / "nats.conf"
        config.write_text(self.configuration(), encoding="utf-8")
        with (self.directory / "stderr.log").open("wb") as stderr:
            self._child = subprocess.Popen(
                launch_command([nats_program(), "-c", config], death_signal=signal.SIGKILL),
                env={**os.environ, **self.secrets()},
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
            )
        self.ports = wait_until(self._read_ports, "a ready nats-server")

    def secrets(self) -> dict[str, str]:
        """The variables that the configuration reads."""
        return self._passwords.environment()

    def configuration(self) -> str:
        return render(
            self.directory,
            self.ports,
            max_file=self.max_file,
            anonymous=self.anonymous,
            shared_mqtt_user=self.shared_mqtt_user,
            auth_issuer=self.issuer.public,
        )

    def kill(self) -> None:
        """Send SIGKILL, and wait until the process has ended."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Shut down in order; nothing when it does not run."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Start again on the same ports and data, after a graceful shutdown if it still runs."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Send SIGSTOP and wait until it takes effect: connections stay open without answers."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _read_ports(self) -> NatsPorts | None:
        assert self._child is not None
        if self._child.poll() is not None:
            complaint = (self.directory / "stderr.log").read_text(encoding="utf-8")
            raise RuntimeError(f"nats-server ended with {self._child.returncode}: {complaint}")
        return read_ports(self.directory, self._child.pid)

    def _end(self, number: signal.Signals) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.send_signal(number)
        child.send_signal(signal.SIGCONT)
        child.wait(_DEADLINE_S)
        (self.directory / "ports" / f"nats-server_{child.pid}.ports").unlink(missing_ok=True)


def nats_url(port: int) -> str:
    """The address for a host, with a proxy's port in place of the server's."""
    return host_url(port, NatsServer.password)


class PostgresServer:
    """A PostgreSQL with the embedded server's setup. A restart keeps the address and the data."""

    # The files must outlive the server's processes, but not a crash of the machine.
    _options = {"fsync": "off", "full_page_writes": "off", "max_connections": "300"}  # noqa: RUF012

    def __init__(self, directory: Path) -> None:
        self._cluster = PostgresCluster.at(
            directory, Passwords("the password of a 'test\\'", "another")
        )
        self._child: subprocess.Popen[bytes] | None = None
        for step in self._cluster.begin():
            done = subprocess.run(
                step.command,
                input=step.stdin,
                env=self._cluster.environment(),
                capture_output=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr.decode()
        self._cluster.commit()
        self.start()

    @property
    def pid(self) -> int:
        assert self._child is not None, "the server is not running"
        return self._child.pid

    @property
    def socket(self) -> Path:
        """The path of its socket."""
        [path] = self._cluster.socket_directory.glob(".s.PGSQL.*[0-9]")
        return path

    def dsn(self, database: str = DATABASE) -> str:
        """The address for functions."""
        return self._cluster.dsn(database)

    @property
    def superuser_dsn(self) -> str:
        return self._cluster.superuser_dsn()

    async def make_database(self, name: str, *, template: str = "template1") -> None:
        """Create a database that the functions' role owns, as in the host."""
        await self.administer(f"CREATE DATABASE {name} TEMPLATE {template} OWNER {FUNCTIONS}")

    async def administer(self, statement: str) -> None:
        """Run a statement as the superuser."""
        connection = await asyncpg.connect(self.superuser_dsn)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def start(self) -> None:
        with self._cluster.log.open("ab") as log:
            self._child = subprocess.Popen(
                self._cluster.server_command(self._options),
                env=self._cluster.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(self._is_ready, "a ready PostgreSQL")

    def kill(self) -> None:
        """SIGKILL to all its processes, and wait until the postmaster is gone."""
        self.pause()  # So that the postmaster starts none meanwhile.
        for backend in self._backends():
            backend.kill()
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Shut down gracefully, even with clients; do nothing when it does not run."""
        self._end(signal.SIGINT)

    def restart(self) -> None:
        """Start again on the same data, after a graceful shutdown if it still runs."""
        self.stop()
        self.start()

    def revive(self) -> None:
        """Have the server running again after a test has killed or paused it."""
        if self._child is None:
            self.start()
        else:
            self.resume()

    def pause(self) -> None:
        """Send SIGSTOP to all its processes: connections stay open without answers."""
        # Not to the process group: each backend has a group of its own.
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)
        for backend in self._backends():
            backend.suspend()

    def resume(self) -> None:
        for backend in self._backends():
            backend.resume()
        os.kill(self.pid, signal.SIGCONT)

    def _backends(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def _is_ready(self) -> bool:
        assert self._child is not None
        if self._child.poll() is not None:
            complaint = self._cluster.find_complaint(self._cluster.log.read_text(encoding="utf-8"))
            if "still in use" in complaint:
                # Children of a killed postmaster may still be running.
                self.start()
                return True
            raise RuntimeError(f"PostgreSQL ended: {complaint}")
        return self._cluster.is_ready(self._child.pid)

    def _end(self, number: signal.Signals) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.send_signal(number)
        child.wait(_DEADLINE_S)


def run_apart(work: Callable[[], Awaitable[T]]) -> T:
    """Run a coroutine in a thread with a loop of its own, for a fixture that is not async."""
    outcome: list[Any] = []

    def run() -> None:
        async def main() -> T:
            return await work()

        try:
            outcome.append(asyncio.run(main()))
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    result: T = outcome[0]
    return result


def remove(directory: Path) -> None:
    """Delete a server's files."""
    shutil.rmtree(directory, ignore_errors=True)
