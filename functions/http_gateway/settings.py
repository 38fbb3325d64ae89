"""What the manifest may set for the gateway."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(name for part in value.split(",") if (name := part.strip()))
    return value


class GatewaySettings(BaseModel):
    """The gateway's settings. Port 0 lets the system choose; an empty key counts as none.

    Attributes:
        host: address to listen on.
        port: TCP port to listen on.
        allowed_hosts: names in requests' `Host` that are right beside those of loopback, parted by
            commas. Without any, a gateway on loopback answers to loopback's names alone, and one
            elsewhere to all.
        admin_key: bearer token of every route whose `http.auth` is `admin`; without it all are
            refused.
        bridge_key: what EMQX sends as `X-Internal-Auth`; without it the door answers 503.
        max_body_bytes: of a request, EMQX's aside. NATS takes 1 MiB by default, envelope included.
        max_bridge_body_bytes: of a request by EMQX, in which JSON may make six bytes of one.
        max_publish_bytes: a longer message from EMQX is stored cut short: keep it below the NATS
            server's `max_payload`.
        max_concurrent: requests worked on at a time; one discovered route gets a quarter of them.
        max_connections: TCP connections open at a time.
        request_timeout_s: how long an endpoint may take before its caller gets 504.
        read_timeout_s: how long a client may take to send its headers, and again its body.
        linger_s: how long requests are still taken after the host was asked to stop: those that
            were on their way are answered, and a load balancer can notice.
        discovery_every_s: pause between two rounds of discovery.
        discovery_wait_s: how long one round collects answers.
        discovery_misses: rounds in a row that a route may be missing before it is dropped.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    allowed_hosts: Annotated[tuple[str, ...], BeforeValidator(_split)] = ()
    admin_key: SecretStr | None = None
    bridge_key: SecretStr | None = None
    max_body_bytes: Annotated[int, Field(ge=1, le=64_000_000)] = 1_000_000
    max_bridge_body_bytes: Annotated[int, Field(ge=1, le=64_000_000)] = 8_000_000
    max_publish_bytes: Annotated[int, Field(ge=4096, le=64_000_000)] = 1_000_000
    max_concurrent: Annotated[int, Field(ge=1, le=100_000)] = 512
    max_connections: Annotated[int, Field(ge=1, le=100_000)] = 2048
    request_timeout_s: Annotated[float, Field(gt=0, le=600)] = 10.0
    read_timeout_s: Annotated[float, Field(gt=0, le=600)] = 10.0
    linger_s: Annotated[float, Field(ge=0, le=60)] = 0.5
    discovery_every_s: Annotated[float, Field(gt=0, le=3600)] = 5.0
    discovery_wait_s: Annotated[float, Field(gt=0, le=30)] = 0.5
    discovery_misses: Annotated[int, Field(ge=1, le=100)] = 3
