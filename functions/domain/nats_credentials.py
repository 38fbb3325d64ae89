"""Credentials of NATS users: keys, and files with a JWT and a key.

Source: NATS documentation, "NKEYS", and nkeys (the encoding of seeds and public keys).
"""

import base64
import binascii
import re
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

_SEED_PREFIX = 18 << 3
_USER_PREFIX = 20 << 3
_SEED_BYTES = 32
_JWT = re.compile(r"-----BEGIN NATS USER JWT-----\s+([A-Za-z0-9_.=-]+)\s")
_SEED = re.compile(r"-----BEGIN USER NKEY SEED-----\s+([A-Z2-7]+)\s")


@dataclass(frozen=True, slots=True)
class Credentials:
    """How the client proves who it is: by password, token, or key, with or without a JWT."""

    user: str | None = None
    password: str | None = None
    token: str | None = None
    seed: str | None = None
    jwt: str | None = None


def parse_credentials(text: str) -> Credentials:
    """The JWT and seed of a credentials file.

    Raises:
        ValueError: the text is no such file. The message quotes nothing.
    """
    jwt, seed = _JWT.search(text), _SEED.search(text)
    if jwt is None or seed is None:
        raise ValueError("these are no credentials of a NATS user")
    read_seed(seed[1])
    return Credentials(seed=seed[1], jwt=jwt[1])


def read_seed(seed: str) -> Ed25519PrivateKey:
    """The key of a user's seed (`SU…`).

    Raises:
        ValueError: the text is no such seed. The message does not quote it.
    """
    try:
        raw = base64.b32decode(seed + "=" * (-len(seed) % 8))
    except (binascii.Error, ValueError):
        raw = b""
    key, check = raw[2:-2], raw[-2:]
    if (
        len(key) != _SEED_BYTES
        or raw[0] & 0xF8 != _SEED_PREFIX
        or binascii.crc_hqx(raw[:-2], 0).to_bytes(2, "little") != check
    ):
        raise ValueError("this is no seed of a NATS user")
    return Ed25519PrivateKey.from_private_bytes(key)


def public_key(key: Ed25519PrivateKey) -> str:
    """The public key of a user, `U…`."""
    raw = bytes([_USER_PREFIX]) + key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    checked = raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")
    return base64.b32encode(checked).decode().rstrip("=")


__all__ = ["Credentials", "parse_credentials", "public_key", "read_seed"]
