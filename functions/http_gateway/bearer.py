"""Passes a caller's bearer token on to an endpoint that checks it by itself."""

import hashlib
import re
from http import HTTPStatus

from functions.http_gateway.attempts import FailedAttempts
from functions.http_gateway.client_addresses import ClientAddresses
from functions.http_gateway.problems import ProblemError
from functions.http_gateway.requests import Request
from runtime import Context

_IDENTITY = "token"
_TOKEN = re.compile(rb"[\x21-\x7e]{1,512}")
_CHALLENGE = {"WWW-Authenticate": "Bearer"}
_REFUSALS = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})


class BearerTokens:
    """Requires a token, and limits by address how often a wrong one may be shown.

    The endpoint says by 401 or 403 that a token is wrong.
    """

    def __init__(self, ctx: Context, addresses: ClientAddresses) -> None:
        self._addresses = addresses
        self._attempts = FailedAttempts(ctx.log, _IDENTITY)

    def require(self, request: Request) -> bytes:
        """The request's token, which is not checked yet.

        Raises:
            ProblemError: 401 without one, 429 after too many wrong ones.
        """
        for name, value in request.scope["headers"]:
            if name == b"authorization":
                scheme, _, token = bytes(value).partition(b" ")
                if scheme.lower() == b"bearer" and _TOKEN.fullmatch(token.strip()):
                    source = self._addresses.source(request.scope)
                    self._attempts.require_room(source, _IDENTITY, _proof(token.strip()))
                    return token.strip()
        raise ProblemError(401, "UNAUTHORIZED", "Send a bearer token.", headers=_CHALLENGE)

    def accepted(self, request: Request, token: bytes) -> None:
        """Note that the endpoint took the token."""
        self._attempts.succeed(self._addresses.source(request.scope), _proof(token))

    def refused(self, request: Request, refusal: ProblemError) -> ProblemError:
        """The answer to a request that the endpoint refused, which counts if the token is wrong."""
        if refusal.status not in _REFUSALS:
            return refusal
        if refusal.status == HTTPStatus.UNAUTHORIZED:
            refusal.headers |= _CHALLENGE
        return self._attempts.fail(self._addresses.source(request.scope), _IDENTITY, refusal)


def _proof(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
