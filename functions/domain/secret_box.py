"""Encrypts secrets at rest: AES-256-GCM, with keys that can be rotated.

A sealed text is: a byte for the form, four that name the key, twelve of nonce, the ciphertext. What
it belongs to is authenticated too, so a sealed text that is copied to another row does not open.
"""

import os
from collections.abc import Sequence
from typing import Annotated

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import AfterValidator, BaseModel, ConfigDict, SecretStr

MIN_KEY_CHARACTERS = 32
_FORM = b"\x01"
_ID_BYTES = 4
_NONCE_BYTES = 12
_HEAD_BYTES = len(_FORM) + _ID_BYTES + _NONCE_BYTES


class Unreadable(Exception):  # noqa: N818 - names what happened
    """A sealed text cannot be opened: its key is not known, or it was changed or copied."""


def read_keys(text: str) -> list[str]:
    """The keys in `SECRETS_KEYS`, by commas or blanks.

    Raises:
        ValueError: a key is too short; the message does not quote it.
    """
    keys = text.replace(",", " ").split()
    if any(len(key) < MIN_KEY_CHARACTERS for key in keys):
        raise ValueError(f"each key must have at least {MIN_KEY_CHARACTERS} characters")
    return keys


def _check_keys(secret: SecretStr) -> SecretStr:
    read_keys(secret.get_secret_value())
    return secret


SecretsKeys = Annotated[SecretStr, AfterValidator(_check_keys)]


class SecretsSettings(BaseModel):
    """Settings of functions that read or write secrets.

    Attributes:
        secrets_keys: keys by commas, each of 32 characters or more. The first encrypts, all of them
            decrypt.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    secrets_keys: SecretsKeys | None = None


class SecretBox:
    """Encrypts with the first of its keys, and decrypts with each.

    Args:
        keys: texts of high entropy.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._by_id: dict[bytes, AESGCM] = {}
        ids = []
        for key in keys:
            material = _derive(key)
            ids.append(material[:_ID_BYTES])
            self._by_id.setdefault(ids[-1], AESGCM(material[_ID_BYTES:]))
        self._current = ids[0] if ids else b""

    @classmethod
    def of(cls, keys: SecretStr | None) -> "SecretBox":
        """The box of a setting."""
        return cls(read_keys(keys.get_secret_value()) if keys else [])

    @property
    def can_seal(self) -> bool:
        """Whether there is a key."""
        return bool(self._by_id)

    @property
    def current(self) -> bytes:
        """The first bytes of each text that is sealed with the first key."""
        return _FORM + self._current

    @property
    def known(self) -> list[bytes]:
        """The first bytes of each text that can be opened."""
        return [_FORM + each for each in self._by_id]

    def seal(self, plain: bytes, belongs_to: str) -> bytes:
        """The text, encrypted.

        Raises:
            Unreadable: there is no key.
        """
        if not self._by_id:
            raise Unreadable("there is no key for secrets")
        nonce = os.urandom(_NONCE_BYTES)
        head = self.current + nonce
        sealed = self._by_id[self._current].encrypt(nonce, plain, head + belongs_to.encode())
        return head + sealed

    def open(self, sealed: bytes, belongs_to: str) -> bytes:
        """The text in clear.

        Raises:
            Unreadable: no key opens it.
        """
        head = sealed[:_HEAD_BYTES]
        key = self._by_id.get(head[len(_FORM) : -_NONCE_BYTES])
        if key is None or len(head) < _HEAD_BYTES or head[: len(_FORM)] != _FORM:
            raise Unreadable("the secret is encrypted with a key that is not known here")
        try:
            return key.decrypt(
                head[-_NONCE_BYTES:], sealed[_HEAD_BYTES:], head + belongs_to.encode()
            )
        except InvalidTag:
            raise Unreadable("the secret was changed, or belongs to another row") from None


def _derive(key: str) -> bytes:
    """An id and a key: neither says anything about the other, or about the text."""
    length = _ID_BYTES + 32
    return HKDF(SHA256(), length, salt=None, info=b"function runtime secrets").derive(key.encode())


__all__ = [
    "MIN_KEY_CHARACTERS",
    "SecretBox",
    "SecretsKeys",
    "SecretsSettings",
    "Unreadable",
    "read_keys",
]
