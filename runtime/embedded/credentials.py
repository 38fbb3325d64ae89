"""Reads addresses and passwords of the embedded servers, for commands beside a host."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from runtime.settings import HostSettings

HOST_USER = "runtime"
SYSTEM_USER = "system"

SECRETS_KEY_FILE = "secrets.key"
NATS_PASSWORD_FILE = "nats.password"  # noqa: S105 - a file's name
POSTGRES_PASSWORD_FILE = "postgres.password"  # noqa: S105 - a file's name
POSTGRES_SUPERUSER_PASSWORD_FILE = "postgres-superuser.password"  # noqa: S105 - a file's name


@dataclass(frozen=True, slots=True)
class NatsAddress:
    """The address with which a command connects to the embedded nats-server.

    Attributes:
        url: password included, when there is one.
        missing: the password file that was not found; None when it was found.
    """

    url: str
    missing: Path | None


def host_url(port: int, password: str) -> str:
    """The address for the host and its operator."""
    return f"nats://{HOST_USER}:{quote(password, safe='')}@127.0.0.1:{port}"


def system_url(port: int, password: str) -> str:
    """The address of the system account, which has the host's password."""
    return f"nats://{SYSTEM_USER}:{quote(password, safe='')}@127.0.0.1:{port}"


def find_nats(settings: HostSettings) -> NatsAddress:
    """The address of the server that `runtime serve` embeds with these settings."""
    path = settings.data_dir / NATS_PASSWORD_FILE
    password = read_secret(path)
    if password is None:
        return NatsAddress(f"nats://127.0.0.1:{settings.nats_port}", path)
    return NatsAddress(host_url(settings.nats_port, password), None)


def read_secret(path: Path) -> str | None:
    """The secret in a file of the host; None when the file does not exist or cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None
