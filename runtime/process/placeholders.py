"""Stands in for the variables that a host adds to the manifests' environment when it serves."""

from collections.abc import Mapping

from runtime.nkeys import AccountKey
from runtime.settings import REGISTRATION_KEY, HostSettings

DATABASE_PLACEHOLDER = "postgresql://127.0.0.1:5432/runtime"


def placeholders(settings: HostSettings) -> dict[str, str]:
    """Placeholders for the variables that the host adds to the manifests' environment."""
    return {
        "NATS_URL": "nats://127.0.0.1:4222",
        "NATS_SYSTEM_URL": "nats://127.0.0.1:4222",
        "NATS_AUTH_ISSUER": AccountKey(bytes(32)).seed,
        "DATABASE_URL": DATABASE_PLACEHOLDER,
        "MQTT_ADMIN_PASSWORD": "made-when-serving",
        "ADMIN_KEY": "made-when-serving",
        REGISTRATION_KEY: "made-when-serving",
        "GATEWAY_PORT": str(settings.gateway_port),
    }


def with_placeholders(
    settings: HostSettings, environment: Mapping[str, str], known: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The environment with a stand-in for each host variable that is unset or empty.

    Args:
        settings: the host's settings.
        environment: the process's environment.
        known: values to take before the placeholders.
    """
    added = {**placeholders(settings), **(known or {})}
    return {
        **environment,
        **{name: value for name, value in added.items() if not environment.get(name)},
    }


__all__ = ["DATABASE_PLACEHOLDER", "placeholders", "with_placeholders"]
