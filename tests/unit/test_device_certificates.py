"""Certificates that a client sends are read, or are none; nothing else comes of any bytes."""

import warnings
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from functions.domain.device_certificates import DeviceCertificate, read_certificate

NAME = "test/dev1"
UNTIL = datetime(2060, 1, 1, tzinfo=UTC)


def made() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject)
    builder = builder.public_key(key.public_key()).serial_number(7)
    builder = builder.not_valid_before(datetime(2026, 1, 1, tzinfo=UTC)).not_valid_after(UNTIL)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


DER = made()
# The version follows three lengths and the tag of the version itself.
VERSION = DER.index(b"\xa0\x03\x02\x01\x02") + 4


def test_a_certificate_says_its_device() -> None:
    read = read_certificate(DER)
    assert isinstance(read, DeviceCertificate)
    assert (read.tenant_id, read.device_id) == ("test", "dev1")
    assert read.until_s == int(UNTIL.timestamp())


@pytest.mark.parametrize(
    "damaged",
    [
        DER[:VERSION] + b"\x50" + DER[VERSION + 1 :],
        # The name as a string of bits, and with letters that are no UTF-8.
        DER.replace(b"\x0c\x09" + NAME.encode(), b"\x03\x09" + NAME.encode()),
        DER.replace(NAME.encode(), b"\xff\xfe\xfd/dev1"),
    ],
)
def test_what_is_found_to_be_none_only_when_a_part_is_read_is_none(damaged: bytes) -> None:
    assert damaged != DER
    assert read_certificate(damaged) is None


@settings(max_examples=500)
@given(st.lists(st.tuples(st.integers(0, len(DER) - 1), st.binary(min_size=1, max_size=3))))
def test_no_bytes_are_anything_but_a_certificate_or_none(changes: list[tuple[int, bytes]]) -> None:
    damaged = bytearray(DER)
    for place, new in changes:
        damaged[place : place + len(new)] = new
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of a negative serial number, for example.
        read_certificate(bytes(damaged))
