"""Addresses and secrets of the running host."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class DemoError(Exception):
    """The demonstration cannot run; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class RunningHost:
    """Addresses and secrets of the host. The secrets are never printed."""

    gateway_url: str
    nats_url: str
    mqtt_port: int
    admin_key: str

    @classmethod
    def find(cls, environment: Mapping[str, str] = os.environ) -> "RunningHost":
        """Read the variables that the host reads, and the files that the host writes.

        Raises:
            DemoError: a secret was not found.
        """
        data = Path(environment.get("RUNTIME_DATA_DIR") or ".runtime")
        nats_port = int(environment.get("RUNTIME_NATS_PORT") or "4222")
        return cls(
            gateway_url=f"http://127.0.0.1:{environment.get('GATEWAY_PORT') or '8080'}",
            nats_url=environment.get("NATS_URL") or f"nats://127.0.0.1:{nats_port}",
            mqtt_port=int(environment.get("RUNTIME_MQTT_PORT") or "1883"),
            admin_key=_secret(environment, "ADMIN_KEY", data / "admin.key"),
        )


def _secret(environment: Mapping[str, str], name: str, path: Path) -> str:
    if given := environment.get(name):
        return given
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        raise DemoError(
            f"There is no {path}: start `make run` first, or set {name} for a host elsewhere."
        ) from None
