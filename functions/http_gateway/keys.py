"""Checks the admin key and the bridge key, in constant time."""

import hmac

from pydantic import SecretStr
from starlette.requests import Request

from functions.http_gateway.problems import ProblemError

_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="admin"'}


def require_admin(request: Request, key: SecretStr | None) -> None:
    """Require the admin key.

    Raises:
        ProblemError: 401 without a bearer token, 403 with a wrong one or when no key is set.
    """
    scheme, _, token = _header(request, b"authorization").partition(b" ")
    if scheme.lower() != b"bearer" or not token.strip():
        raise ProblemError(
            401, "UNAUTHORIZED", "Send the admin key as a bearer token.", headers=_CHALLENGE
        )
    if not is_key(token.strip(), key):
        raise ProblemError(403, "FORBIDDEN", "This is not the admin key.")


def require_bridge(request: Request, key: SecretStr | None) -> None:
    """Require the bridge key, which the MQTT broker sends.

    Raises:
        ProblemError: 503 when no key is set, so that the broker keeps its messages until there is a
            key; 401 without a key, 403 with a wrong one.
    """
    if not is_set(key):
        raise ProblemError(503, "BRIDGE_NOT_CONFIGURED", "The gateway has no bridge key.")
    shown = _header(request, b"x-internal-auth")
    if not shown:
        raise ProblemError(401, "UNAUTHORIZED", "X-Internal-Auth is missing.")
    if not is_key(shown, key):
        raise ProblemError(403, "FORBIDDEN", "X-Internal-Auth is wrong.")


def is_set(key: SecretStr | None) -> bool:
    """Whether a key is set; an empty key does not count, since any client could send it."""
    return key is not None and bool(key.get_secret_value())


def is_key(shown: bytes, key: SecretStr | None) -> bool:
    """Whether `shown` is the key."""
    if key is None or not is_set(key):
        return False
    return hmac.compare_digest(shown, key.get_secret_value().encode())


def _header(request: Request, name: bytes) -> bytes:
    for found, value in request.scope["headers"]:
        if found == name:
            return bytes(value)
    return b""
