"""Validates a webhook route's configuration, for the management API and for the delivery."""

import base64
import binascii
import re
import secrets
from typing import Annotated

import httpx
from pydantic import AfterValidator, SecretStr

SECRET_PREFIX = "whsec_"  # noqa: S105 - every signing secret begins with it
MAX_HEADERS = 20

# Source: Standard Webhooks 1.0.0, "Signature scheme": 24 to 64 bytes.
_SECRET_BYTES = range(24, 65)
_NEW_SECRET_BYTES = 32
_MAX_HEADER_LENGTH = 4096
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_HOST = re.compile(rb"[A-Za-z0-9._:-]+")
_PORTS = range(1, 65536)
# Headers that the delivery sets, and headers that change how the end of the request is found.
_OWN_HEADERS = frozenset(
    {
        "connection",
        "content-length",
        "content-type",
        "host",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "webhook-id",
        "webhook-signature",
        "webhook-timestamp",
    }
)


def check_url(text: str) -> str:
    """The URL, checked to be one that a delivery can be sent to; it may be internationalized.

    Raises:
        ValueError: no delivery can be sent there; the message is one sentence that repeats no part
            of the URL.
    """
    try:
        parsed = httpx.URL(text)
    except httpx.InvalidURL:
        raise ValueError("this is not a URL") from None
    if parsed.scheme not in {"http", "https"} or not _HOST.fullmatch(parsed.raw_host):
        raise ValueError("the URL must begin with http:// or https:// and name a host")
    if parsed.userinfo:
        raise ValueError("the URL must not hold a user name or password")
    if parsed.port is not None and parsed.port not in _PORTS:
        raise ValueError("the port must be between 1 and 65535")
    return text


def check_secret(secret: SecretStr) -> SecretStr:
    """The secret, checked to be one that a new route may sign with.

    Raises:
        ValueError: the secret is not `whsec_` and the base64 of 24 to 64 bytes.
    """
    text = secret.get_secret_value()
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not text.startswith(SECRET_PREFIX) or len(key) not in _SECRET_BYTES:
        raise ValueError("a secret must be whsec_ and the base64 of 24 to 64 bytes")
    return secret


def check_header_name(name: str) -> str:
    """The name of a header, checked to be one that the delivery does not set itself.

    Raises:
        ValueError: it is not a name of a header, or the delivery sets this header.
    """
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError("this is not the name of a header")
    if name.lower() in _OWN_HEADERS:
        raise ValueError("every delivery sets this header itself")
    return name


def check_header_value(value: SecretStr) -> SecretStr:
    """The value of a header.

    Raises:
        ValueError: it is too long, or has characters that a header cannot have.
    """
    text = value.get_secret_value()
    if not (text.isascii() and text.isprintable()) or len(text) > _MAX_HEADER_LENGTH:
        raise ValueError(
            f"a header's value may have at most {_MAX_HEADER_LENGTH} printable ASCII characters"
        )
    return value


def make_secret() -> str:
    """A new signing secret."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_NEW_SECRET_BYTES)).decode()


HeaderName = Annotated[str, AfterValidator(check_header_name)]
HeaderValue = Annotated[SecretStr, AfterValidator(check_header_value)]

__all__ = [
    "MAX_HEADERS",
    "SECRET_PREFIX",
    "HeaderName",
    "HeaderValue",
    "check_header_name",
    "check_header_value",
    "check_secret",
    "check_url",
    "make_secret",
]
