"""Certificates of devices: the common name is tenant/device. Pure."""

from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

UNREADABLE = (ValueError, TypeError, x509.InvalidVersion)
"""What `cryptography` raises for bytes that are no certificate; for some of them only when a part
is read."""


class DeviceCertificate(NamedTuple):
    """What a certificate says; whoever verified its chain and key is another's business.

    Attributes:
        tenant_id: the common name before the first slash; not checked.
        device_id: what follows it; not checked.
        fingerprint: SHA-256 of the certificate, in hexadecimal.
        until_s: when it ends, in seconds since 1970.
    """

    tenant_id: str
    device_id: str
    fingerprint: str
    until_s: int


def read_certificate(encoded: bytes) -> DeviceCertificate | None:
    """The device of a certificate in PEM or DER; None without exactly one common name."""
    try:
        if encoded.lstrip().startswith(b"-----BEGIN"):
            certificate = x509.load_pem_x509_certificate(encoded)
        else:
            certificate = x509.load_der_x509_certificate(encoded)
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        (name,) = (str(each.value) for each in names)
        until_s = int(certificate.not_valid_after_utc.timestamp())
    except UNREADABLE:
        return None
    tenant_id, _, device_id = name.partition("/")
    return DeviceCertificate(tenant_id, device_id, certificate.fingerprint(SHA256()).hex(), until_s)


__all__ = ["UNREADABLE", "DeviceCertificate", "read_certificate"]
