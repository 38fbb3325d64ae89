"""Which certificates a route may have, and what is said about those that it may not."""

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import SecretStr

from functions.domain.target_tls import (
    MAX_PEM_CHARACTERS,
    check_authorities,
    check_client_certificate,
    read_target_tls,
)
from tests.support.certificates import HOUR, self_signed


@pytest.fixture
def pem(tmp_path: Path) -> str:
    return self_signed("client", tmp_path).read_text()


def key(password: bytes | None = None) -> str:
    encryption = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    return (
        ec.generate_private_key(ec.SECP256R1())
        .private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        .decode()
    )


def certificate_of(pem: str) -> str:
    return pem[pem.index("-----BEGIN CERTIFICATE") :]


def test_a_certificate_and_its_key_are_taken_in_any_order(pem: str) -> None:
    certificate = certificate_of(pem)
    for text in (pem, certificate + pem.replace(certificate, "")):
        assert check_client_certificate(SecretStr(text)).get_secret_value() == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "this is not a certificate in PEM"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "not a certificate"),
        ("x" * (MAX_PEM_CHARACTERS + 1), "at most 65536 characters"),
        ("{certificate}", "there is no private key beside the certificate"),
        ("{certificate}{other}", "does not belong to the first certificate"),
        ("{certificate}{encrypted}", "the private key must not be encrypted"),
        (
            "{certificate}-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----",
            "the private key cannot be read",
        ),
        ("{many}", "at most 20 certificates are taken"),
    ],
)
def test_a_client_certificate_that_cannot_be_used_is_told_in_one_sentence(
    pem: str, text: str, told: str
) -> None:
    certificate = certificate_of(pem)
    text = text.format(
        certificate=certificate,
        other=key(),
        encrypted=key(b"password"),
        many=certificate * 21,
    )
    with pytest.raises(ValueError, match=told):
        check_client_certificate(SecretStr(text))


@pytest.mark.parametrize(
    ("begins", "ends", "told"),
    [
        (-2 * HOUR, timedelta(seconds=-1), "a certificate ended on 20"),
        (HOUR, 2 * HOUR, "a certificate begins on 20"),
    ],
)
def test_a_new_configuration_has_certificates_that_are_valid_today(
    tmp_path: Path, begins: timedelta, ends: timedelta, told: str
) -> None:
    pem = self_signed("old", tmp_path, begins=begins, ends=ends).read_text()
    with pytest.raises(ValueError, match=told):
        check_client_certificate(SecretStr(pem))
    with pytest.raises(ValueError, match=told):
        check_authorities(pem)
    # One that has ended since it was stored fails an attempt, and does not break its route.
    assert read_target_tls(SecretStr(pem), pem) is not None


def test_the_fingerprint_tells_certificates_apart_and_nothing_shows_the_key(pem: str) -> None:
    both = read_target_tls(SecretStr(pem), certificate_of(pem))
    alone = read_target_tls(SecretStr(pem), None)
    assert both is not None
    assert alone is not None
    assert both.fingerprint != alone.fingerprint
    assert "PRIVATE" not in repr(alone)
    assert read_target_tls(None, None) is None
