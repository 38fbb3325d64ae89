"""A real Mosquitto broker for tests, on a free port of 127.0.0.1."""

import base64
import hashlib
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from runtime.embedded.processes import launch_command
from tests.support.servers import wait_until

_ROOT = Path(__file__).parent.parent.parent
_PORTS = 20
"""How often a port that another process was faster to take is replaced by another one."""


def mosquitto_program() -> str:
    """The broker: the one that tools/mosquitto/install has unpacked, or an installed one."""
    unpacked = _ROOT / ".tools" / "mosquitto" / "mosquitto"
    if unpacked.is_file():
        return str(unpacked)
    found = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.fail("there is no mosquitto: tools/mosquitto/install unpacks Debian's")
    return found


class Mosquitto:
    """A broker that keeps its sessions on disk. A restart keeps port and data.

    Args:
        directory: for its files.
        more: further lines of its configuration.
        listener: lines that belong to its listener, such as certificates.
    """

    def __init__(self, directory: Path, *, more: str = "", listener: str = "") -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._more = more
        self._listener = listener
        self._child: subprocess.Popen[bytes] | None = None
        self.port = 0
        for _ in range(_PORTS):
            self.port = free_port()
            if self._start():
                return
        raise AssertionError(self.log)

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self._directory / "log").read_text(encoding="utf-8")

    def start(self) -> None:
        assert self._start(), self.log

    def kill(self) -> None:
        """SIGKILL: what it has not saved is lost."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM: it saves its sessions."""
        if self._child is not None:
            self._child.send_signal(signal.SIGCONT)
            self._end(signal.SIGTERM)

    def pause(self) -> None:
        assert self._child is not None
        self._child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._child.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        assert self._child is not None
        self._child.send_signal(signal.SIGCONT)

    def configuration(self) -> str:
        return (
            f"listener {self.port} 127.0.0.1\n{self._listener}\n"
            f"persistence true\npersistence_location {self._directory}/\n"
            f"log_dest stderr\nlog_type all\nmax_queued_messages 0\nuser root\n"
            + (self._more or "allow_anonymous true")
            + "\n"
        )

    def _start(self) -> bool:
        config = self._directory / "mosquitto.conf"
        config.write_text(self.configuration())
        with (self._directory / "log").open("ab") as log:
            self._child = subprocess.Popen(
                launch_command([mosquitto_program(), "-c", config], death_signal=signal.SIGKILL),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        child = self._child
        wait_until(lambda: child.poll() is not None or _answers(self.port), "a ready mosquitto")
        if child.poll() is None:
            return True
        self._child = None
        return False

    def _end(self, number: signal.Signals) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.send_signal(number)
            child.wait(60)


def mosquitto_hash(password: str) -> str:
    """A password as mosquitto_passwd writes it. Source: mosquitto, `password_mosq.c`."""
    salt = bytes(range(12))
    found = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 101)
    return f"$7$101${base64.b64encode(salt).decode()}${base64.b64encode(found).decode()}"


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at the moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
