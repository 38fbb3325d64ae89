"""The embedded nats-server: JetStream, monitoring and MQTT on 127.0.0.1."""

import asyncio
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from runtime.embedded.credentials import host_url, system_url
from runtime.embedded.nats_config import (
    NatsPasswords,
    NatsPorts,
    find_nats_server,
    render,
)
from runtime.embedded.nats_ports import read_ports
from runtime.embedded.ports import WantedPort
from runtime.embedded.private_files import write_private
from runtime.embedded.processes import launch_command
from runtime.embedded.storage import StorageRoom, choose_room
from runtime.embedded.supervision import Launch, ServerSupervisor
from runtime.observe.logs import get_logger
from runtime.settings import HostSettings

log = get_logger("runtime.embedded")


def wanted_ports(settings: HostSettings) -> tuple[WantedPort, ...]:
    """The ports that the settings choose for the server."""
    return (
        WantedPort(settings.nats_port, "the embedded nats-server", "RUNTIME_NATS_PORT"),
        WantedPort(settings.monitor_port, "its monitoring", "RUNTIME_MONITOR_PORT"),
        WantedPort(settings.mqtt_port, "its MQTT listener", "RUNTIME_MQTT_PORT"),
    )


class EmbeddedNats:
    """A nats-server that runs as long as the host; its data outlives the host.

    Args:
        directory: absolute path; contains the configuration, the log and the streams.
        settings: has the ports; 0 lets the server choose once, and restarts keep the choice.
        passwords: passwords of its users.
        stream_limits: limits of the streams that will be created, in bytes.
        auth_issuer: the public account key whose owner decides about users without an account.
    """

    name = "nats-server"
    stop_signal = signal.SIGTERM
    stop_timeout_s = 15.0

    def __init__(
        self,
        directory: Path,
        settings: HostSettings,
        passwords: NatsPasswords,
        stream_limits: Mapping[str, int],
        auth_issuer: str,
    ) -> None:
        self._auth_issuer = auth_issuer
        self._shared_mqtt_user = settings.mqtt_shared_user == "on"
        self._stream_limits = stream_limits
        self._directory = directory
        self._passwords = passwords
        self._anonymous = settings.nats_anonymous == "data"
        self._config = directory / "nats.conf"
        self.ports = NatsPorts(
            settings.nats_port or -1, settings.monitor_port or -1, settings.mqtt_port or -1
        )
        self.wanted_ports = wanted_ports(settings)
        self.proof = str(self._config)
        self.log = directory / "stderr.log"
        self.supervisor = ServerSupervisor(self)

    @property
    def url(self) -> str:
        """The address for the host, password included; known after the start."""
        return host_url(self.ports.nats, self._passwords.host)

    @property
    def system_url(self) -> str:
        """The address of the server's system account, password included."""
        return system_url(self.ports.nats, self._passwords.host)

    async def start(self) -> None:
        """Start the server; return when it listens and JetStream has recovered its streams.

        Raises:
            ConfigError: the server cannot start; contains the server's reason.
        """
        await self.supervisor.start()

    async def stop(self) -> None:
        """Shut the server down cleanly."""
        await self.supervisor.stop()

    async def prepare(self) -> Launch:
        """Write the configuration anew: the ports or this program may have changed."""
        await asyncio.to_thread(self._write)
        command = launch_command(
            [find_nats_server(), "-c", self._config], death_signal=self.stop_signal
        )
        return Launch(command, {**os.environ, **self._passwords.environment()})

    async def is_ready(self, server: int) -> bool:
        """Whether the server listens; from then on its ports are fixed."""
        ports = await asyncio.to_thread(read_ports, self._directory, server)
        if ports is None:
            return False
        self.ports = ports
        return True

    def find_complaint(self, written: str) -> str:
        """The last fatal line of its log, or of its output before it could open a log."""
        log = self._directory / "nats-server.log"
        lines = written.splitlines()
        if log.exists():
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:] + lines
        fatal = [line.split("[FTL]")[-1].strip() for line in lines if "[FTL]" in line]
        return fatal[-1] if fatal else " ".join(written.split())

    def is_passing(self, complaint: str) -> bool:
        """Return False: no reason of a failed start goes away by itself."""
        del complaint
        return False

    def _write(self) -> None:
        ports = self._directory / "ports"
        ports.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory.chmod(0o700)
        for stale in ports.glob("*.ports"):
            stale.unlink()
        max_file = self._choose_room().max_file
        text = render(
            self._directory,
            self.ports,
            max_file=max_file,
            anonymous=self._anonymous,
            shared_mqtt_user=self._shared_mqtt_user,
            auth_issuer=self._auth_issuer,
        )
        write_private(self._config, text)

    def _choose_room(self) -> StorageRoom:
        limits = {name: max(0, limit) for name, limit in self._stream_limits.items()}
        room = choose_room(self._directory, limits)
        chosen = {"disk_room_bytes": room.room, "stream_limits_bytes": room.limits}
        log.info("JetStream's room was chosen", max_file_bytes=room.max_file, **chosen)
        if room.is_exceeded:
            log.warning(
                "Streams filled to their limits do not fit on the disk; lower max_bytes, or make "
                "room before they are full",
                **chosen,
            )
        return room
