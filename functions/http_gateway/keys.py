"""Checks the admin key and the bridge key, in constant time."""

import hmac

from pydantic import SecretStr

from functions.http_gateway.attempts import FailedAttempts
from functions.http_gateway.client_addresses import ClientAddresses
from functions.http_gateway.problems import ProblemError
from functions.http_gateway.requests import Request
from runtime import Context

_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="admin"'}
# Each 401 names a scheme. Source: RFC 9110, section 15.5.2.
_BRIDGE_CHALLENGE = {"WWW-Authenticate": 'InternalAuth realm="bridge"'}


class KeyCheck:
    """Requires a key, and limits by address how often a wrong one may be shown."""

    def __init__(
        self, ctx: Context, key: SecretStr | None, identity: str, addresses: ClientAddresses
    ) -> None:
        """`identity` says in the log whose key it is: `admin` or `bridge`."""
        self._key = key
        self._identity = identity
        self._addresses = addresses
        self._attempts = FailedAttempts(ctx.log, identity)

    @property
    def is_set(self) -> bool:
        """Whether there is a key."""
        return is_set(self._key)

    def is_shown(self, shown: bytes) -> bool:
        """Whether `shown` is the key; counts nothing."""
        return is_key(shown, self._key)

    def check(self, request: Request, shown: bytes, refusal: ProblemError) -> None:
        """Require that `shown` is the key.

        Raises:
            ProblemError: `refusal`; 429 after too many wrong keys.
        """
        source = self._addresses.source(request.scope)
        self._attempts.require_room(source, self._identity, self._identity)
        if not is_key(shown, self._key):
            raise self._attempts.fail(source, self._identity, refusal)
        self._attempts.succeed(source, self._identity)


def require_admin(request: Request, key: KeyCheck) -> None:
    """Require the admin key.

    Raises:
        ProblemError: 401 without a bearer token, 403 with a wrong one or when no key is set, 429
            after too many wrong ones.
    """
    token = bearer_token(request)
    if not token:
        raise ProblemError(
            401, "UNAUTHORIZED", "Send the admin key as a bearer token.", headers=_CHALLENGE
        )
    refusal = ProblemError(403, "FORBIDDEN", "This is not the admin key.")
    key.check(request, token, refusal)


def bearer_token(request: Request) -> bytes:
    """The bearer token that a request shows; empty when it shows none."""
    scheme, _, token = _header(request, b"authorization").partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


def require_bridge(request: Request, key: KeyCheck) -> None:
    """Require the bridge key, which the MQTT broker sends.

    Raises:
        ProblemError: 503 when no key is set, so that the broker keeps its messages until there is a
            key; 401 without a key, 403 with a wrong one, 429 after too many wrong ones.
    """
    if not key.is_set:
        raise ProblemError(503, "BRIDGE_NOT_CONFIGURED", "The gateway has no bridge key.")
    shown = _header(request, b"x-internal-auth")
    if not shown:
        raise ProblemError(
            401, "UNAUTHORIZED", "X-Internal-Auth is missing.", headers=_BRIDGE_CHALLENGE
        )
    key.check(request, shown, ProblemError(403, "FORBIDDEN", "X-Internal-Auth is wrong."))


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
