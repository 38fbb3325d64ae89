"""Settings of the MQTT bridge and of its downlink."""

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_MOST_TOPICS = 16


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(topic for part in value.split(",") if (topic := part.strip()))
    return value


def _or_none(value: object) -> object:
    return None if value == "" else value


def _check_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname or parts.path.strip("/") or parts.query:
        raise ValueError("expected mqtt://host:port or mqtts://host:port")
    if parts.username is not None or parts.password is not None:
        raise ValueError("the user belongs into `username`, the password into `password`")
    parts.port  # noqa: B018 - raises ValueError for a port out of bounds
    return url


def _check_filter(topic: str) -> str:
    levels = topic.split("/")
    if not topic or "\0" in topic or topic.startswith("$"):
        raise ValueError("a topic filter is not empty and does not begin with $")
    if any("#" in level for level in levels[:-1]) or any(
        len(level) > 1 and ("#" in level or "+" in level) for level in levels
    ):
        raise ValueError("+ and # stand for a whole level each, # for the last one only")
    return topic


_File = Annotated[Path | None, BeforeValidator(_or_none)]


class BrokerSettings(BaseModel):
    """Where the broker is, and how to log in.

    Attributes:
        url: `mqtt://host:port`, or `mqtts://` for TLS; 1883 and 8883 without a port.
        username: for the broker; empty for none.
        password: for the broker.
        authorities: PEM file of the certificate authorities that may sign the broker's certificate;
            without it those of the system. The certificate must be of the host in `url`.
        client_certificate: PEM file with the bridge's own certificate and its key.
        keep_alive_s: after so long without a packet the broker is asked whether it is there.
        connect_timeout_s: how long connecting and logging in may take.
        mark_key: signs the platform's messages to devices, so that the bridge knows them when they
            come back; the same on all hosts. Without one, those of the same process only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: Annotated[str, AfterValidator(_check_url)] = "mqtt://127.0.0.1:1883"
    username: Annotated[str, Field(max_length=1024)] = ""
    password: SecretStr | None = None
    authorities: _File = None
    client_certificate: _File = None
    keep_alive_s: Annotated[int, Field(ge=5, le=3600)] = 30
    connect_timeout_s: Annotated[float, Field(gt=0, le=120)] = 10.0
    mark_key: SecretStr | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> "BrokerSettings":
        if self.password is not None and self.password.get_secret_value() and not self.username:
            raise ValueError("a password needs a username")
        if not self.tls and (self.authorities or self.client_certificate):
            raise ValueError("certificates need an address that begins with mqtts://")
        return self

    @property
    def broker_host(self) -> str:
        """The broker's name or address."""
        return urlsplit(self.url).hostname or ""

    @property
    def broker_port(self) -> int:
        """The broker's port."""
        parts = urlsplit(self.url)
        return parts.port or _PORTS[parts.scheme]

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return urlsplit(self.url).scheme == "mqtts"


class BridgeSettings(BrokerSettings):
    """What the bridge subscribes to, and what it may hold.

    Attributes:
        client_id: the sessions at the broker are named `{client_id}-1` to `{client_id}-{sessions}`;
            the same on all hosts.
        group: the group of the shared subscription, which several sessions have; the same on all
            hosts.
        topics: filters of the topics on which devices publish, separated by commas.
        sessions: sessions at the broker, which the hosts share among themselves; the same on all
            hosts. With more than one the broker spreads the messages of a device over them, so they
            lose their order, and some brokers lose what comes after their restart.
        place_life_s: after so long without its host a session is taken over by another one; the
            `max_age` of stream `MQTT_BRIDGE`.
        session_expiry_s: how long the broker keeps messages for a session that no host has.
        receive_maximum: messages of one session that the broker may send before the first of them
            is acknowledged.
        max_waiting_bytes: payloads of one session that wait to be stored; beyond them the bridge
            reads no further.
        max_publish_bytes: a longer message is cut before it is stored. Streams have room for the
            messages of all tenants together, so keep this no larger than what ingest takes needs,
            and below the NATS server's `max_payload`.
    """

    client_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = "runtime-bridge"
    group: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = "runtime"
    topics: Annotated[
        tuple[Annotated[str, AfterValidator(_check_filter)], ...],
        BeforeValidator(_split),
        Field(min_length=1, max_length=_MOST_TOPICS),
    ] = ("tenant/+/device/+/#",)
    sessions: Annotated[int, Field(ge=1, le=64)] = 1
    place_life_s: Annotated[float, Field(ge=6, le=600)] = 10.0
    session_expiry_s: Annotated[int, Field(ge=60, le=2**32 - 1)] = 7 * 86_400
    receive_maximum: Annotated[int, Field(ge=1, le=16_384)] = 500
    max_waiting_bytes: Annotated[int, Field(ge=65_536, le=1_000_000_000)] = 16_000_000
    max_publish_bytes: Annotated[int, Field(ge=4096, le=64_000_000)] = 65_536


__all__ = ["BridgeSettings", "BrokerSettings"]
