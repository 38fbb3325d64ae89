"""Client certificates and authorities of a tenant's own, in PEM."""

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from pydantic import SecretStr

MAX_CERTIFICATES = 20
MAX_PEM_CHARACTERS = 65_536
_MAX_RSA_BITS = 8192
_KEY = re.compile(r"-----BEGIN ([A-Z ]{0,20}PRIVATE KEY)-----[^-]{0,20000}-----END \1-----")


@dataclass(frozen=True, slots=True)
class TargetTls:
    """The certificates with which an endpoint is connected to.

    Attributes:
        client_certificate: the client's certificate, those up to its authority, and its private
            key; None for none.
        authorities: trusted in place of the public ones; None for these.
        fingerprint: tells apart certificates, and tells nothing about the key.
        not_after: when the client's certificate ends.
    """

    client_certificate: SecretStr | None
    authorities: str | None
    fingerprint: str
    not_after: datetime | None


def read_target_tls(
    client_certificate: SecretStr | None, authorities: str | None
) -> TargetTls | None:
    """What a configuration says about TLS; None for nothing. Dates are not looked at.

    Raises:
        ValueError: it cannot be used.
    """
    if client_certificate is None and authorities is None:
        return None
    pem = client_certificate.get_secret_value() if client_certificate else ""
    not_after = _read_client_certificate(pem)[0].not_valid_after_utc if pem else None
    if authorities is not None:
        _read_certificates(authorities)
    digest = hashlib.sha256(f"{pem}\0{authorities or ''}".encode(errors="replace")).hexdigest()
    return TargetTls(client_certificate, authorities, digest[:32], not_after)


def check_client_certificate(pem: SecretStr) -> SecretStr:
    """The certificate of a new configuration, which has to be valid today.

    Raises:
        ValueError: it cannot be used; one sentence without a part of it.
    """
    _check_dates(_read_client_certificate(pem.get_secret_value()))
    return pem


def check_authorities(pem: str) -> str:
    """The authorities of a new configuration, which have to be valid today.

    Raises:
        ValueError: they cannot be used.
    """
    _check_dates(_read_certificates(pem))
    return pem


def _check_dates(certificates: list[x509.Certificate]) -> None:
    now = datetime.now(UTC)
    for one in certificates:
        if now > one.not_valid_after_utc:
            raise ValueError(f"a certificate ended on {one.not_valid_after_utc:%Y-%m-%d}")
        if now < one.not_valid_before_utc:
            raise ValueError(f"a certificate begins on {one.not_valid_before_utc:%Y-%m-%d}")


def _read_client_certificate(pem: str) -> list[x509.Certificate]:
    certificates = _read_certificates(pem)
    found = _KEY.search(pem)
    if found is None:
        raise ValueError("there is no private key beside the certificate")
    try:
        # Checking the numbers of a long RSA key takes seconds, and OpenSSL has a check of its own.
        key = load_pem_private_key(
            found[0].encode(), password=None, unsafe_skip_rsa_key_validation=True
        )
    except TypeError:
        raise ValueError("the private key must not be encrypted") from None
    except Exception:  # noqa: BLE001 - of several libraries; the text may quote the key
        raise ValueError("the private key cannot be read") from None
    if isinstance(key, RSAPrivateKey) and key.key_size > _MAX_RSA_BITS:
        raise ValueError(f"an RSA key may have at most {_MAX_RSA_BITS} bits")
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != certificates[0].public_key().public_bytes(*form):
        raise ValueError("the private key does not belong to the first certificate")
    return certificates


def _read_certificates(pem: str) -> list[x509.Certificate]:
    if len(pem) > MAX_PEM_CHARACTERS:
        raise ValueError(f"certificates may have at most {MAX_PEM_CHARACTERS} characters")
    try:
        found = x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        raise ValueError("this is not a certificate in PEM") from None
    if len(found) > MAX_CERTIFICATES:
        raise ValueError(f"at most {MAX_CERTIFICATES} certificates are taken")
    return found


__all__ = [
    "MAX_CERTIFICATES",
    "MAX_PEM_CHARACTERS",
    "TargetTls",
    "check_authorities",
    "check_client_certificate",
    "read_target_tls",
]
