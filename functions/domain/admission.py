"""Checks whether a device's message is accepted: size, tenant, registry, token, subscription, site.

Proof of identity comes before everything that counts for or against the device. Nobody can use up
a device's rate, or learn the state of its subscription, without being that device.

`functions.ingest.checks` applies these rules to telemetry, together with rules of its own, and
reads the registry through a cache. For the rarer messages (shadows, answers to commands)
`refuse_device` asks the database each time.
"""

import hashlib
import hmac
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from functions.domain.envelope import (
    MAX_PAYLOAD_BYTES,
    PAYLOAD_TOO_LARGE,
    TENANT_MISMATCH,
    Envelope,
)
from functions.domain.quarantine import Executor, Refusal
from functions.domain.registry import RegisteredDevice, find_device

CertificatePolicy = Literal["off", "optional", "required"]
"""`off` ignores user names. `optional` accepts a user name tenant/device, which the ingress takes
from a client certificate's common name, in place of a token that is not sent. `required` refuses
every other message. Of nats-server's MQTT listener the subject is the name, see `Envelope`."""


class Refused(NamedTuple):
    """The reason code of a refusal, and a sentence that holds no secret."""

    reason: str
    detail: str


class SenderSettings(BaseModel):
    """How a device proves its messages, for the functions that call `refuse_device`.

    Attributes:
        require_token: False only where nobody but devices with credentials of their own can
            publish; the subject then is the proof.
        certificates: see `CertificatePolicy`. Set it only where every ingress sets the user name
            itself: a client that may publish to NATS can claim any name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    require_token: bool = True
    certificates: CertificatePolicy = "off"


async def refuse_device(
    executor: Executor, envelope: Envelope, stored_at_ns: int, settings: SenderSettings
) -> Refusal | None:
    """Why the device's message is not accepted; None when it is.

    The message need not name a site; if it does, the registry must have the device there.

    Args:
        executor: the pool or a connection.
        envelope: the message.
        stored_at_ns: when the stream stored the message; the subscription must have been in force,
            and a certificate valid.
        settings: what proves a device.
    """
    found = judge_size(envelope, MAX_PAYLOAD_BYTES) or judge_tenant(envelope)
    if found is None:
        device = await find_device(executor, envelope.tenant_id, envelope.device_id)
        found = _judge_device(device, envelope, stored_at_ns, settings)
    return None if found is None else Refusal.of_envelope(envelope, *found)


def _judge_device(
    device: RegisteredDevice | None, envelope: Envelope, now_ns: int, settings: SenderSettings
) -> Refused | None:
    if device is None:
        return UNREGISTERED
    return (
        judge_status(device)
        or (
            judge_proof(device, envelope, now_ns, settings.certificates)
            if settings.require_token
            else None
        )
        or judge_certificate(device, envelope, now_ns, settings.certificates)
        or judge_subscription(device, now_ns)
        or judge_site(device, envelope.payload.get("site_id", device.site_id))
    )


UNREGISTERED = Refused("UNREGISTERED_DEVICE", "the tenant has no such device")
NO_SUBSCRIPTION = Refused(
    "NO_SUBSCRIPTION_CAPACITY", "no subscription that has started counts for the device"
)


def judge_size(envelope: Envelope, limit_bytes: int) -> Refused | None:
    """Check that the payload has at most `limit_bytes`."""
    if envelope.payload_bytes > limit_bytes:
        return Refused(PAYLOAD_TOO_LARGE, f"more than {limit_bytes} bytes")
    return None


def judge_tenant(envelope: Envelope) -> Refused | None:
    """Check that subject, envelope and payload name the topic's tenant, where they name one."""
    tenant_id = envelope.tenant_id
    claimed = envelope.claimed_tenant
    if (
        envelope.subject_tenant == tenant_id
        and (claimed is None or claimed == tenant_id)
        and envelope.payload.get("tenant_id", tenant_id) == tenant_id
    ):
        return None
    return Refused(TENANT_MISMATCH, "the topic's tenant is not the one named elsewhere")


def judge_subscription(
    device: RegisteredDevice, now_ns: int, *, required: bool = True
) -> Refused | None:
    """Check that tenant and subscription are in force; `required` says if there must be one."""
    if device.tenant_status != "ACTIVE":
        return Refused("SUBSCRIPTION_SUSPENDED", "the tenant is suspended")
    subscription = device.subscription_at(now_ns)
    if subscription is None:
        return NO_SUBSCRIPTION if required else None
    if subscription.status == "SUSPENDED":
        return Refused("SUBSCRIPTION_SUSPENDED", "the subscription is suspended")
    if subscription.status == "EXPIRED" or subscription.expires_ns <= now_ns:
        return Refused("SUBSCRIPTION_EXPIRED", "the subscription has ended")
    return None


def judge_status(device: RegisteredDevice) -> Refused | None:
    """Check that the device is active."""
    if device.status != "ACTIVE":
        return Refused("DEVICE_REVOKED", "the device is revoked")
    return None


def judge_site(device: RegisteredDevice, site_id: object) -> Refused | None:
    """Check that the device is registered at this site."""
    if device.site_id != site_id:
        return Refused(
            "SITE_MISMATCH_REGISTRY_VS_PAYLOAD", "the device is registered at another site"
        )
    return None


def judge_proof(
    device: RegisteredDevice, envelope: Envelope, now_ns: int, certificates: CertificatePolicy
) -> Refused | None:
    """Check the message's token, in whose place a certificate's name may stand."""
    token = envelope.payload.get("provision_token")
    if token is None and certificates != "off" and _names_device(envelope):
        return None
    return judge_token(device, token, now_ns)


def judge_certificate(
    device: RegisteredDevice, envelope: Envelope, now_ns: int, certificates: CertificatePolicy
) -> Refused | None:
    """Check that a certificate's name is the device's, and that one of its certificates counts."""
    if certificates == "off" or (certificates == "optional" and "/" not in envelope.username):
        return None
    if not _names_device(envelope):
        return Refused("AUTH_FAILED", "the certificate's common name is not tenant/device")
    if not any(first <= now_ns < last for first, last in device.certificates):
        return Refused("AUTH_FAILED", "the device has no certificate that is active and valid")
    return None


def _names_device(envelope: Envelope) -> bool:
    return envelope.username == f"{envelope.tenant_id}/{envelope.device_id}"


def judge_token(device: RegisteredDevice, token: object, now_ns: int) -> Refused | None:
    """Check that the token is the device's; compares the hashes in constant time."""
    expected = device.token_hash
    if expected is None:
        return Refused("TOKEN_NOT_SET_IN_REGISTRY", "the device has no token in the registry")
    if not isinstance(token, str) or not token:
        return Refused("TOKEN_MISSING", "the payload carries no provision_token")
    digest = hashlib.sha256(token.encode()).digest()
    # The usual case first: a call more for each message costs.
    if not hmac.compare_digest(digest, expected) and not device.is_previous_token(digest, now_ns):
        return Refused("TOKEN_INVALID", "the provision_token is not the device's")
    return None


__all__ = [
    "UNREGISTERED",
    "CertificatePolicy",
    "Refused",
    "SenderSettings",
    "judge_certificate",
    "judge_proof",
    "judge_site",
    "judge_size",
    "judge_status",
    "judge_subscription",
    "judge_tenant",
    "judge_token",
    "refuse_device",
]
