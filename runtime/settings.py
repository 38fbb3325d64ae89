"""The host's own settings, read once from the environment."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError

from runtime.errors import ConfigError, Problem
from runtime.nkeys import AccountKey

_NATS_SCHEMES = ("nats", "tls")


def _check_nats_url(url: SecretStr) -> SecretStr:
    for place in url.get_secret_value().split(","):
        scheme, separator, _ = place.strip().partition("://")
        if separator and scheme not in _NATS_SCHEMES:
            raise ValueError(
                "write nats://host:4222 or tls://host:4222, or several of them, with commas"
            )
    return url


def _check_issuer(seed: SecretStr) -> SecretStr:
    AccountKey.from_seed(seed.get_secret_value())
    return seed


Port = Annotated[int, Field(ge=0, le=65535)]

SECRETS_KEYS = "SECRETS_KEYS"
REGISTRATION_KEY = "RUNTIME_REGISTRATION_KEY"
"""The variable with the key that signs endpoints for gateways."""

_VARIABLES = {
    "NATS_URL": "nats_url",
    "NATS_SYSTEM_URL": "nats_system_url",
    "NATS_AUTH_ISSUER": "nats_auth_issuer",
    "DATABASE_URL": "database_url",
    "MQTT_ADMIN_PASSWORD": "mqtt_admin_password",
    "ADMIN_KEY": "admin_key",
    SECRETS_KEYS: "secrets_keys",
    "GATEWAY_PORT": "gateway_port",
    "RUNTIME_NATS_PORT": "nats_port",
    "RUNTIME_NATS_ANONYMOUS": "nats_anonymous",
    "RUNTIME_MONITOR_PORT": "monitor_port",
    "RUNTIME_MQTT_PORT": "mqtt_port",
    "RUNTIME_MQTT_SHARED_USER": "mqtt_shared_user",
    "RUNTIME_ADMIN_PORT": "admin_port",
    "RUNTIME_DATA_DIR": "data_dir",
    "RUNTIME_LOG_LEVEL": "log_level",
    "RUNTIME_LOG_FORMAT": "log_format",
    "RUNTIME_GRACE_S": "grace_s",
    "RUNTIME_POSTGRES_CONNECTIONS": "postgres_connections",
    REGISTRATION_KEY: "registration_key",
}


class HostSettings(BaseModel):
    """The host's servers, ports, limits and log format. Port 0 lets the system choose."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nats_url: Annotated[SecretStr, AfterValidator(_check_nats_url)] | None = None
    nats_system_url: Annotated[SecretStr, AfterValidator(_check_nats_url)] | None = None
    nats_auth_issuer: Annotated[SecretStr, AfterValidator(_check_issuer)] | None = None
    database_url: SecretStr | None = None
    mqtt_admin_password: SecretStr | None = None
    admin_key: SecretStr | None = None
    secrets_keys: SecretStr | None = None
    gateway_port: Port = 8080
    nats_port: Port = 4222
    nats_anonymous: Literal["data", "none"] = "data"
    monitor_port: Port = 8222
    mqtt_port: Port = 1883
    mqtt_shared_user: Literal["on", "off"] = "on"
    admin_port: Port = 8081
    data_dir: Path = Path(".runtime")
    log_level: Annotated[str, Field(pattern=r"^(DEBUG|INFO|WARNING|ERROR)$")] = "INFO"
    log_format: Literal["auto", "text", "json"] = "auto"
    grace_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    postgres_connections: Annotated[int, Field(ge=1, le=1000)] = 16
    registration_key: Annotated[SecretStr, Field(min_length=32)] | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "HostSettings":
        """Read the settings; an unknown `RUNTIME_*` variable counts as a typing error.

        Raises:
            ConfigError: lists every variable that is wrong or unknown, never its value.
        """
        problems = [
            Problem(name, "", "no such setting", f"known are {', '.join(sorted(_VARIABLES))}")
            for name in environment
            if name.startswith("RUNTIME_") and name not in _VARIABLES
        ]
        values = {
            field: environment[name] for name, field in _VARIABLES.items() if environment.get(name)
        }
        names = {field: name for name, field in _VARIABLES.items()}
        try:
            settings = cls.model_validate(values)
        except ValidationError as invalid:
            problems += [
                Problem(
                    names[str(error["loc"][0])],
                    "",
                    "cannot be used",
                    error["msg"].removeprefix("Value error, "),
                )
                for error in invalid.errors()
            ]
        if problems:
            raise ConfigError(problems)
        return settings
