"""Starts the servers of the benchmarks, and the processes that they measure."""

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from runtime.broker.connection import Broker
from runtime.embedded.servers import EmbeddedServers
from runtime.settings import HostSettings

ROOT = Path(__file__).parent.parent
STOP_LIMIT_S = 60.0
_OF_A_HOST = ("RUNTIME_", "NATS_", "DATABASE_", "GATEWAY_", "ADMIN_", "MQTT_")


@dataclass(frozen=True, slots=True)
class Servers:
    """Running servers.

    Attributes:
        directory: a folder for files; the servers' data is in its subfolder `data`.
        environment: variables with which a host finds the servers.
        broker: a connection to NATS.
    """

    directory: Path
    environment: dict[str, str]
    broker: Broker

    @property
    def nats_url(self) -> str:
        """The address of NATS."""
        return self.environment["NATS_URL"]

    @property
    def database_url(self) -> str:
        """The address of PostgreSQL."""
        return self.environment["DATABASE_URL"]


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """A folder that PostgreSQL's user can traverse, with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        directory.chmod(0o711)
        yield directory


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Servers]:
    """Run the host's embedded servers, with their default configuration."""
    settings = HostSettings(
        data_dir=directory / "data", nats_port=0, monitor_port=0, mqtt_port=0, admin_port=0
    )
    servers = EmbeddedServers(settings)
    environment = await servers.start()
    try:
        broker = await Broker.connect(environment["NATS_URL"], name="benchmark")
        try:
            yield Servers(directory, environment, broker)
        finally:
            await broker.close()
    finally:
        await servers.stop()


@asynccontextmanager
async def running(
    servers: Servers, command: Sequence[str], *, folder: Path = ROOT
) -> AsyncIterator[psutil.Process]:
    """Run a process with this project's Python in a folder, and stop it at the end."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        cwd=folder,
        env={
            **clean_environment(),
            **servers.environment,
            "RUNTIME_ADMIN_PORT": "0",
            "RUNTIME_LOG_LEVEL": "ERROR",
        },
    )
    try:
        yield psutil.Process(child.pid)
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGTERM)
        await asyncio.wait_for(child.wait(), STOP_LIMIT_S)


def clean_environment() -> dict[str, str]:
    """The environment without the variables that change a host's settings."""
    return {key: value for key, value in os.environ.items() if not key.startswith(_OF_A_HOST)}


def free_port() -> int:
    """A free TCP port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
