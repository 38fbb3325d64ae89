"""Keys with which a tenant's own programs use the API: their form, and the question whose one is.

A key is shown once, when it is made; the database and the caches hold its SHA-256 alone.
"""

import hashlib
import secrets
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

SUBJECT = "management.tenant-keys.prove"
"""The endpoint that says whose a key is."""

MAX_KEYS = 200
"""Keys in one question."""

KEY_PREFIX = "tk_"
MAX_KEY_LENGTH = 128

KeyDigest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ShownKeys(BaseModel):
    """The SHA-256 of keys that clients have shown, in hexadecimal."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    keys: Annotated[list[KeyDigest], Field(min_length=1, max_length=MAX_KEYS)]


class KeyOwners(BaseModel):
    """The tenant of each key, in the order of the question; None for a key that is not valid."""

    tenants: list[str | None]


def make_key() -> str:
    """A new key of 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> str:
    """The SHA-256 of a key, in hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


__all__ = [
    "KEY_PREFIX",
    "MAX_KEYS",
    "MAX_KEY_LENGTH",
    "SUBJECT",
    "KeyOwners",
    "ShownKeys",
    "digest_of",
    "make_key",
]
