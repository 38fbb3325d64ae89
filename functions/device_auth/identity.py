"""Who an MQTT client claims to be, how it proves that, and what the proven device may do. Pure."""

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from functions.device_auth.tokens import AuthRequest
from functions.domain.device_certificates import read_certificate
from functions.domain.topics import (
    ACK,
    DOWNLINKS,
    SHADOW_REQUESTS,
    is_device_id,
    is_tenant_id,
)

_TOKEN_LIMIT_BYTES = 256
_SESSION = re.compile(r"[0-9]", re.ASCII)
# nats-server delivers QoS 1 and 2 to a client on subjects of its own.
_DELIVERY = ("$MQTT.sub.>", "$MQTT.deliver.pubrel.>")
# The last levels of what a device asks of a shadow, without and with a name.
_ASKED = [f"{form}{request}" for form in ("", "name.*.") for request in sorted(SHADOW_REQUESTS)]
# First levels of what the platform sends; all other single levels are message types of devices.
_SENT_TO_DEVICES = sorted({kind.partition("/")[0] for kind in DOWNLINKS})


@dataclass(frozen=True, slots=True)
class Claimant:
    """A client that names a device.

    Attributes:
        token: the device's token as sent; empty with a certificate.
        fingerprint: SHA-256 of the certificate in hexadecimal; empty with a token.
        until_s: when the certificate or a replaced token ends, in seconds since 1970; 0 for never.
    """

    tenant_id: str
    device_id: str
    token: str = ""
    fingerprint: str = ""
    until_s: int = 0

    @property
    def name(self) -> str:
        """The user name that stands for the device: tenant/device."""
        return f"{self.tenant_id}/{self.device_id}"

    @property
    def token_hash(self) -> bytes:
        """SHA-256 of the token, as the registry has it."""
        return hashlib.sha256(self.token.encode()).digest()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a client may not come in; the text repeats nothing that it sent."""

    reason: str


def read_claimant(request: AuthRequest) -> Claimant | Refusal:
    """The device that a client names; a certificate takes the place of the token."""
    if not request.is_mqtt:
        return Refusal("only MQTT clients are devices")
    with_certificate = bool(request.certificate and not request.password)
    named = _by_certificate(request) if with_certificate else _by_user_name(request)
    if isinstance(named, Refusal):
        return named
    if not (is_tenant_id(named.tenant_id) and is_device_id(named.device_id)):
        return Refusal("the user name of a device is tenant/device")
    # A session belongs to its client id, whoever connects with it, and the server keeps it. So a
    # device has few.
    name, client_id = named.name, read_client_id(request.client_id)
    if client_id != name and not (
        client_id.startswith(f"{name}/") and _SESSION.fullmatch(client_id.removeprefix(f"{name}/"))
    ):
        return Refusal("the client id of a device is its user name, alone or with / and a digit")
    return named


def _by_user_name(request: AuthRequest) -> Claimant | Refusal:
    tenant_id, _, device_id = request.user.partition("/")
    if not 0 < len(request.password.encode()) <= _TOKEN_LIMIT_BYTES:
        return Refusal("the password of a device is its token")
    return Claimant(tenant_id, device_id, token=request.password)


def _by_certificate(request: AuthRequest) -> Claimant | Refusal:
    found = _read_certificate(request.certificate)
    # nats-server asks about nobody without a user name where nameless clients may connect.
    if found is None or request.user != found.name:
        return Refusal("the certificate's common name is not the user name")
    return found


def read_client_id(client_id: str) -> str:
    """A client id with the dots of the device id, which nats-server wants written as `//`."""
    return client_id.replace("//", ".")


def permissions_of(claimant: Claimant) -> dict[str, Any]:
    """What a device may do: publish what devices send, and subscribe to what is its own.

    nats-server checks a publish after its subject mappings, so their results are named here as
    well. What the platform sends to a device, no device may publish.
    """
    tenant_id, device = claimant.tenant_id, claimant.device_id.replace(".", "//")
    own = f"tenant.{tenant_id}.device.{device}"
    sent = (ACK.replace("/", "."), *(f"shadow.{asked}" for asked in _ASKED))
    telemetry = f"telemetry.{tenant_id}.{device}"
    return {
        "pub": {
            "allow": [
                f"{own}.*",
                *(f"{own}.{kind}" for kind in sent),
                *(telemetry, f"{telemetry}.heartbeat", f"{telemetry}.event"),
                *(f"shadow.{tenant_id}.{device}.{asked}" for asked in _ASKED),
                f"commands.{tenant_id}.{device}.ack",
            ],
            "deny": [f"{own}.{level}" for level in _SENT_TO_DEVICES],
        },
        # The filter …/# asks for the level above it, too.
        "sub": {"allow": [own, f"{own}.>", *_DELIVERY]},
        "allowed_connection_types": ["MQTT", "MQTT_WS"],
    }


def _read_certificate(pem: str) -> Claimant | None:
    found = read_certificate(pem.encode())
    if found is None:
        return None
    return Claimant(
        found.tenant_id, found.device_id, fingerprint=found.fingerprint, until_s=found.until_s
    )


__all__ = [
    "Claimant",
    "Refusal",
    "permissions_of",
    "read_claimant",
    "read_client_id",
]
