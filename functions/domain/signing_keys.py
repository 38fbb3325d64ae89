"""Ed25519 keys of webhooks, in the text form of Standard Webhooks 1.0.0.

Source: standard-webhooks/standard-webhooks, spec/standard-webhooks.md, "Signature scheme".
"""

import base64
import binascii

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PRIVATE_PREFIX = "whsk_"
PUBLIC_PREFIX = "whpk_"
_SEED_BYTES = 32
# The seed alone, or seed and public key, as other senders of the standard write it.
_LENGTHS = frozenset({_SEED_BYTES, 2 * _SEED_BYTES})


def make_signing_key() -> str:
    """A new private key: `whsk_` and base64 of seed and public key."""
    key = Ed25519PrivateKey.generate()
    raw = key.private_bytes_raw() + key.public_key().public_bytes_raw()
    return PRIVATE_PREFIX + base64.b64encode(raw).decode()


def read_signing_key(text: str) -> Ed25519PrivateKey:
    """The key of a text.

    Raises:
        ValueError: the text is not `whsk_` and the base64 of a key; the message does not quote it.
    """
    try:
        raw = base64.b64decode(text.removeprefix(PRIVATE_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if not text.startswith(PRIVATE_PREFIX) or len(raw) not in _LENGTHS:
        raise ValueError("a signing key must be whsk_ and the base64 of an ed25519 key")
    return Ed25519PrivateKey.from_private_bytes(raw[:_SEED_BYTES])


def public_key_of(text: str) -> str:
    """The public key of a private one: `whpk_` and base64.

    Raises:
        ValueError: as `read_signing_key`.
    """
    public = read_signing_key(text).public_key().public_bytes_raw()
    return PUBLIC_PREFIX + base64.b64encode(public).decode()


__all__ = [
    "PRIVATE_PREFIX",
    "PUBLIC_PREFIX",
    "make_signing_key",
    "public_key_of",
    "read_signing_key",
]
