"""Account keys as nats-server writes them.

Source: NATS nkeys, `nkeys/README.md` and `strkey.go`: base32 without padding of a prefix, the 32
bytes of an ed25519 key, and a CRC-16 (XModem), low byte first. A seed has two prefix bytes: five
bits for "seed", eight for the kind of key.
"""

import base64
import binascii

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_SEED = 18 << 3
_ACCOUNT = 0
_SERVER = 13 << 3
_KEY_BYTES = 32
_CRC_BYTES = 2


class AccountKey:
    """An account's private key, which signs what a nats-server believes of that account."""

    def __init__(self, raw: bytes) -> None:
        """`raw` is the 32 bytes of an ed25519 private key."""
        self._raw = raw
        self._key = Ed25519PrivateKey.from_private_bytes(raw)

    @classmethod
    def from_seed(cls, seed: str) -> "AccountKey":
        """Read a seed, such as `nk -gen account` prints: `SA` and 56 more characters.

        Raises:
            ValueError: this is not the seed of an account's key; the text repeats none of it.
        """
        raw = _decode(seed)
        prefix = bytes([_SEED | _ACCOUNT >> 5, (_ACCOUNT & 31) << 3])
        if raw is None or len(raw) != len(prefix) + _KEY_BYTES or not raw.startswith(prefix):
            raise ValueError("an account's seed is SA and 56 more characters of A-Z and 2-7")
        return cls(raw.removeprefix(prefix))

    @property
    def seed(self) -> str:
        """The secret, for `from_seed`."""
        return _encode(bytes([_SEED | _ACCOUNT >> 5, (_ACCOUNT & 31) << 3]) + self._raw)

    @property
    def public(self) -> str:
        """The public key, which names the account: `A` and 55 more characters."""
        return _encode(bytes([_ACCOUNT]) + self._key.public_key().public_bytes_raw())

    def sign(self, data: bytes) -> bytes:
        """The 64 bytes of an ed25519 signature."""
        return self._key.sign(data)


def server_key(text: str) -> Ed25519PublicKey | None:
    """The public key of a nats-server, `N` and 55 more characters; None if this is none."""
    raw = _decode(text)
    if raw is None or len(raw) != 1 + _KEY_BYTES or raw[0] != _SERVER:
        return None
    return Ed25519PublicKey.from_public_bytes(raw[1:])


def _encode(raw: bytes) -> str:
    return base64.b32encode(raw + _crc(raw)).decode().rstrip("=")


def _decode(text: str) -> bytes | None:
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError):
        return None
    body, crc = raw[:-_CRC_BYTES], raw[-_CRC_BYTES:]
    return body if crc == _crc(body) else None


def _crc(raw: bytes) -> bytes:
    return binascii.crc_hqx(raw, 0).to_bytes(_CRC_BYTES, "little")


__all__ = ["AccountKey", "server_key"]
