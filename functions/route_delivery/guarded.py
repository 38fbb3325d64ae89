"""What the types have in common whose destinations a tenant chooses by name or address."""

import hashlib

from pydantic import field_validator

from functions.outbound.receipt import Receipt, health_of_fault
from functions.outbound.settings import DeliverySettings
from functions.outbound.transport.faults import DestinationRefused, Fault
from runtime import AddressPolicy, parse_networks

CONNECT_OVERTIME_S = 0.5
"""How long an attempt may exceed the time for connecting, so that the log can tell them apart."""


class GuardedSettings(DeliverySettings):
    """Settings of a type whose destinations a tenant chooses.

    Attributes:
        allowed_networks: networks allowed beside the public ones: `10.0.0.0/8, 127.0.0.1:8090`.
        nameservers: name servers in place of the system's, such as `10.0.0.2, 10.0.0.3:5353`.
    """

    allowed_networks: str = ""
    nameservers: str = ""

    @field_validator("allowed_networks")
    @classmethod
    def _are_networks(cls, text: str) -> str:
        parse_networks(text)
        return text

    @property
    def policy(self) -> AddressPolicy:
        """Which addresses may be connected to."""
        return AddressPolicy(parse_networks(self.allowed_networks))

    @property
    def nameserver_list(self) -> list[str]:
        """The name servers, one by one."""
        return self.nameservers.replace(",", " ").split()


def receipt_of(fault: Fault | DestinationRefused) -> Receipt:
    """The result of an attempt that a fault has ended."""
    if isinstance(fault, DestinationRefused):
        return Receipt(
            "refused",
            "DESTINATION_NOT_ALLOWED",
            "the destination leads to no allowed address",
            health="unknown",
        )
    return Receipt("failed", fault.code, fault.reason, health=health_of_fault(fault))


def fingerprint(*parts: object) -> str:
    """Tells configurations apart without showing them; the same in every process."""
    return hashlib.sha256(repr(parts).encode(errors="replace")).hexdigest()[:16]


def not_json() -> Receipt:
    """The result for a payload that has NaN, Infinity or half a character."""
    reason = "the payload cannot be written as JSON"
    return Receipt("refused", "PAYLOAD_NOT_JSON", reason, health="unknown")


__all__ = ["CONNECT_OVERTIME_S", "GuardedSettings", "fingerprint", "not_json", "receipt_of"]
