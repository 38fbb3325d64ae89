"""The question whether a sender is the device that it names: what doors ask, and the answer."""

import hashlib
import hmac
from enum import Enum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from functions.domain.identifiers import DeviceId, TenantId
from functions.domain.registry import RegisteredDevice

SUBJECT = "management.devices.prove"
"""The endpoint's subject."""

MAX_CLAIMS = 200
_NO_DEVICE = hashlib.sha256(b"no device has this hash as the hash of its token").digest()


class Standing(Enum):
    """What a claim's token shows. Only who has the device's token learns that it is revoked."""

    PROVEN = "PROVEN"
    UNPROVEN = "UNPROVEN"
    REVOKED = "REVOKED"


class Claim(BaseModel):
    """A sender's claim to be a device. The token travels and is cached as its SHA-256 only."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    tenant_id: TenantId
    device_id: DeviceId
    token_sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Claims(BaseModel):
    """Claims of several senders."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    claims: Annotated[list[Claim], Field(min_length=1, max_length=MAX_CLAIMS)]


class Standings(BaseModel):
    """The standing of each claim, in the order of the claims."""

    standings: list[Standing]


def make_claim(tenant_id: str, device_id: str, token: str) -> Claim:
    """The claim of a sender who shows this token; the ids must be valid."""
    digest = hashlib.sha256(token.encode()).hexdigest()
    return Claim.model_construct(tenant_id=tenant_id, device_id=device_id, token_sha256=digest)


def judge_claim(claim: Claim, device: RegisteredDevice | None) -> Standing:
    """The standing of a claim. An unknown device and a wrong token cannot be told apart."""
    expected = _NO_DEVICE if device is None or device.token_hash is None else device.token_hash
    if not hmac.compare_digest(bytes.fromhex(claim.token_sha256), expected):
        return Standing.UNPROVEN
    if device is None or device.token_hash is None:
        return Standing.UNPROVEN
    return Standing.PROVEN if device.status == "ACTIVE" else Standing.REVOKED


__all__ = [
    "MAX_CLAIMS",
    "SUBJECT",
    "Claim",
    "Claims",
    "Standing",
    "Standings",
    "judge_claim",
    "make_claim",
]
