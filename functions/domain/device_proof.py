"""The question whether a sender is the device that it names: what doors ask, and the answer."""

import hashlib
from enum import Enum
from typing import Annotated, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from functions.domain.identifiers import DeviceId, TenantId
from functions.domain.registry import RegisteredDevice

SUBJECT = "management.devices.prove"
"""The endpoint's subject."""

MAX_CLAIMS = 200
_NO_DEVICE = RegisteredDevice(
    "", token_hash=hashlib.sha256(b"no device has this hash as the hash of its token").digest()
)


class Standing(Enum):
    """What a claim's token shows. Only who has the device's token learns that it is revoked."""

    PROVEN = "PROVEN"
    UNPROVEN = "UNPROVEN"
    REVOKED = "REVOKED"


_Digest = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")]


class Claim(BaseModel):
    """A sender's claim to be a device, by its token or its certificate.

    The token travels and is cached as its SHA-256 only. A certificate's key was proved already, to
    whoever ended the sender's TLS.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    tenant_id: TenantId
    device_id: DeviceId
    token_sha256: _Digest = ""
    certificate_sha256: _Digest = ""

    @model_validator(mode="after")
    def _has_one_proof(self) -> Self:
        if bool(self.token_sha256) == bool(self.certificate_sha256):
            raise ValueError("a claim has a token or a certificate")
        return self


class Claims(BaseModel):
    """Claims of several senders."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    claims: Annotated[list[Claim], Field(min_length=1, max_length=MAX_CLAIMS)]


class Standings(BaseModel):
    """The standing of each claim, in the order of the claims."""

    standings: list[Standing]


class MadeClaim(NamedTuple):
    """A claim whose ids are known to be valid; as a key it costs a fifth of the model."""

    tenant_id: str
    device_id: str
    token_sha256: str
    certificate_sha256: str = ""


def make_claim(tenant_id: str, device_id: str, token: str) -> MadeClaim:
    """The claim of a sender who shows this token; the ids must be valid."""
    digest = hashlib.sha256(token.encode()).hexdigest()
    return MadeClaim(tenant_id, device_id, digest)


def judge_certificate(device: RegisteredDevice | None, *, is_active: bool) -> Standing:
    """The standing of a claim by a certificate, which is or is not an active one of the device."""
    if device is None or not is_active:
        return Standing.UNPROVEN
    return _standing(device)


def judge_claim(claim: Claim, device: RegisteredDevice | None, now_ns: int) -> Standing:
    """The standing of a claim by a token. An unknown device and a wrong token look the same."""
    known = _NO_DEVICE if device is None else device
    if known.is_token(bytes.fromhex(claim.token_sha256), now_ns) and device is not None:
        return _standing(device)
    return Standing.UNPROVEN


def _standing(device: RegisteredDevice) -> Standing:
    """Of a device that is proved. Of a tenant that is being erased none is let in any more."""
    may_send = device.status == "ACTIVE" and device.tenant_status != "ERASING"
    return Standing.PROVEN if may_send else Standing.REVOKED


__all__ = [
    "MAX_CLAIMS",
    "SUBJECT",
    "Claim",
    "Claims",
    "MadeClaim",
    "Standing",
    "Standings",
    "judge_certificate",
    "judge_claim",
    "make_claim",
]
