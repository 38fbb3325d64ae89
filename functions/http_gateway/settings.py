"""The gateway's settings."""

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(name for part in value.split(",") if (name := part.strip()))
    return value


def _check_key(key: SecretStr | None) -> SecretStr | None:
    if key is not None and 0 < len(key.get_secret_value()) < MIN_KEY_LENGTH:
        raise ValueError(f"a key must have at least {MIN_KEY_LENGTH} characters")
    return key


MIN_KEY_LENGTH = 16
Key = Annotated[SecretStr | None, AfterValidator(_check_key)]


class GatewaySettings(BaseModel):
    """The gateway's settings in the manifest.

    Attributes:
        host: address to listen on.
        port: TCP port to listen on; 0 lets the system choose.
        allowed_hosts: names that a request's `Host` may have beside those of loopback, separated by
            commas. Without any, a gateway on loopback accepts only loopback's names, and a gateway
            on another address accepts every name.
        trusted_proxies: networks of reverse proxies, such as `10.0.0.0/8,127.0.0.1/32`, separated
            by commas. Only from these is `X-Forwarded-For` read. Without it all clients behind a
            proxy count as one address.
        client_certificate_header: header in which a trusted proxy passes on the client certificate
            that it has verified, such as `Client-Cert` (RFC 9440); empty to read none. The proxy
            must drop what clients write into it.
        require_token: whether a device must prove itself by its token before its message is stored.
            Turn it off together with `require_token` of function `ingest`, or if certificates
            replace tokens.
        token_cache_s: how long the registry's answer about a device's token is used, while the
            gateway hears of no change of the device.
        registration_key: the key by which hosts sign the endpoints that they expose; the host
            sets it. Endpoints without a valid signature are not served. It also signs messages to
            devices, which EMQX sends back.
        unsigned_subjects: subjects of endpoints that are served without a signature, separated by
            commas, such as `billing.>`: micro services that no host of this runtime serves. Never
            `/api/v1` and `management.>`.
        admin_key: bearer token for every route whose `http.auth` is `admin`, of at least 16
            characters; without a key, or with an empty one, those routes refuse every request.
        bridge_key: the key that EMQX sends as `X-Internal-Auth`, of at least 16 characters; without
            a key, or with an empty one, the bridge answers 503.
        max_device_body_bytes: largest body of a device's message; ingest takes 8192 bytes unless
            its settings say otherwise, and quarantines more.
        max_batch_items: most messages in one batch.
        max_batch_bytes: largest body of a batch, expanded if it is coded.
        max_polls: devices that may wait for a command at a time.
        device_rate_per_s: messages a second that the gateway stores for a device, after a first
            `device_burst`; 0 for no limit. Function `ingest` has finer rates.
        device_burst: messages that a device may send at once.
        tenant_rate_per_s: the same for all devices of a tenant together; 0 for no limit.
        tenant_burst: messages that the devices of a tenant may send at once.
        shadow_rate_per_s: requests about its shadows that a device may send in a second, questions
            included, after `shadow_burst` at once.
        shadow_burst: see there.
        tenant_shadow_bytes_per_s: bytes of shadows that all devices of a tenant may read in a
            second: what a document costs goes by its size.
        tenant_shadow_burst_bytes: bytes of these that they may read at once.
        max_body_bytes: largest body of any other request, except EMQX's. NATS accepts 1 MiB by
            default, envelope included.
        max_bridge_body_bytes: largest body of EMQX's request, in which JSON may need six bytes for
            one byte of the payload.
        max_publish_bytes: a longer message from EMQX is cut before it is stored; keep this below
            the NATS server's `max_payload`.
        max_concurrent: requests at a time whose body is complete and whose answer has not begun;
            one discovered route gets a quarter of them.
        max_connections: TCP connections open at a time; one more takes the place of the idlest.
        max_connections_per_address: connections that one address may have, trusted proxies
            excepted; 0 for half of `max_connections`.
        max_buffered_bytes: bytes of incomplete bodies that the gateway holds at a time.
        max_unread_bytes: bytes of answers that the gateway holds for clients that do not read;
            beyond it those are cut off that have not read for the longest time.
        request_timeout_s: how long an endpoint may take before its caller gets 504.
        read_timeout_s: how long a client may take to send its headers, and again its body.
        write_timeout_s: how long a client may leave an answer unread that fills the buffers.
        linger_s: how long requests are still accepted after the host was asked to stop, so that
            requests on their way are answered and a load balancer can react.
        discovery_every_s: pause between two rounds of discovery.
        discovery_wait_s: how long one round collects answers.
        discovery_misses: consecutive rounds from which a route may be missing before it is dropped.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    allowed_hosts: Annotated[tuple[str, ...], BeforeValidator(_split)] = ()
    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], BeforeValidator(_split)] = ()
    client_certificate_header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{0,64}$")] = ""
    require_token: bool = True
    token_cache_s: Annotated[float, Field(ge=0, le=300)] = 5.0
    registration_key: SecretStr | None = None
    unsigned_subjects: Annotated[tuple[str, ...], BeforeValidator(_split)] = ()
    admin_key: Key = None
    bridge_key: Key = None
    max_device_body_bytes: Annotated[int, Field(ge=1, le=64_000_000)] = 65_536
    max_batch_items: Annotated[int, Field(ge=1, le=10_000)] = 500
    max_batch_bytes: Annotated[int, Field(ge=1, le=64_000_000)] = 524_288
    max_polls: Annotated[int, Field(ge=0, le=100_000)] = 1_000
    device_rate_per_s: Annotated[float, Field(ge=0, le=1_000_000)] = 100.0
    device_burst: Annotated[int, Field(ge=1, le=1_000_000)] = 1_000
    tenant_rate_per_s: Annotated[float, Field(ge=0, le=1_000_000)] = 10_000.0
    tenant_burst: Annotated[int, Field(ge=1, le=10_000_000)] = 20_000
    shadow_rate_per_s: Annotated[float, Field(gt=0, le=100_000)] = 5.0
    shadow_burst: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    tenant_shadow_bytes_per_s: Annotated[int, Field(ge=1, le=10**12)] = 2_000_000
    tenant_shadow_burst_bytes: Annotated[int, Field(ge=1000, le=10**12)] = 64_000_000
    max_body_bytes: Annotated[int, Field(ge=1, le=64_000_000)] = 1_000_000
    max_bridge_body_bytes: Annotated[int, Field(ge=1, le=64_000_000)] = 8_000_000
    max_publish_bytes: Annotated[int, Field(ge=4096, le=64_000_000)] = 65_536
    max_concurrent: Annotated[int, Field(ge=1, le=100_000)] = 512
    max_connections: Annotated[int, Field(ge=1, le=100_000)] = 2048
    max_connections_per_address: Annotated[int, Field(ge=0, le=100_000)] = 0
    max_buffered_bytes: Annotated[int, Field(ge=1, le=10_000_000_000)] = 64_000_000
    max_unread_bytes: Annotated[int, Field(ge=1, le=10_000_000_000)] = 64_000_000
    request_timeout_s: Annotated[float, Field(gt=0, le=600)] = 10.0
    read_timeout_s: Annotated[float, Field(gt=0, le=600)] = 10.0
    write_timeout_s: Annotated[float, Field(gt=0, le=600)] = 10.0
    linger_s: Annotated[float, Field(ge=0, le=60)] = 0.5
    discovery_every_s: Annotated[float, Field(gt=0, le=3600)] = 5.0
    discovery_wait_s: Annotated[float, Field(gt=0, le=30)] = 0.5
    discovery_misses: Annotated[int, Field(ge=1, le=100)] = 3
