"""Bearer tokens by OAuth 2 client credentials, cached until they end.

Source: RFC 6749, sections 2.3.1, 4.4 and 5.
"""

import asyncio
import base64
import json
import math
from dataclasses import dataclass
from typing import TypeGuard
from urllib.parse import quote, urlencode

import httpx

from functions.domain.target_auth import OAuth2Auth
from functions.outbound.transport.client import HttpClient
from functions.outbound.transport.client_tls import TlsContexts
from functions.outbound.transport.connection import Answer
from functions.outbound.transport.connector import Origin
from functions.outbound.transport.faults import (
    DestinationRefused,
    Fault,
    TokenFailed,
    TokenRefused,
    TokenUrlNotAllowed,
    take_failure,
)

ANSWER_BYTES = 32_768
REFUSED_FOR_S = 60.0
FAILED_FOR_S = 5.0
RENEWED_EVERY_S = 60.0

_USUAL_S = 300.0
_LEAST_S = 1.0
_LONGEST_S = 86_400.0
# A token is replaced before its end, since requests take time.
_USED_SHARE = 0.9
_MAX_KEPT = 10_000
_MAX_TOKEN_CHARACTERS = 8192
_OK = 200
_CLIENT_ERRORS = range(400, 500)
_TRANSIENT = frozenset({408, 425, 429})
# Source: RFC 6749, section 5.2. Other texts of an answer are not repeated.
_ERRORS = frozenset(
    {
        *("invalid_client", "invalid_grant", "invalid_request", "invalid_scope"),
        *("unauthorized_client", "unsupported_grant_type"),
    }
)


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    until_s: float


@dataclass(frozen=True, slots=True)
class _Failure:
    fault: TokenFailed | DestinationRefused
    until_s: float


class Tokens:
    """Tokens by credential; one request at a time for each, whoever wants its token.

    A failure is kept too, for a while: broken credentials fail at once, and no token endpoint gets
    a request for every job.

    Args:
        client: sends the token requests, through the same guard as the deliveries.
        contexts: TLS of the token endpoints.
    """

    def __init__(self, client: HttpClient, contexts: TlsContexts) -> None:
        self._client = client
        self._contexts = contexts
        self._loop = asyncio.get_running_loop()
        self._kept: dict[OAuth2Auth, _Token | _Failure] = {}
        self._requests: dict[OAuth2Auth, asyncio.Task[str]] = {}
        self._renewed_at_s: dict[OAuth2Auth, float] = {}

    async def get(self, credential: OAuth2Auth) -> str:
        """The credential's token.

        Raises:
            TokenFailed: the token endpoint gave none.
            TokenUrlNotAllowed: the policy allows no address of the token endpoint.
        """
        kept = self._kept.get(credential)
        if kept is not None and kept.until_s > self._loop.time():
            if isinstance(kept, _Failure):
                raise type(kept.fault)(*kept.fault.args)
            return kept.text
        request = self._requests.get(credential)
        if request is None:
            request = self._requests[credential] = self._loop.create_task(self._fetch(credential))
            request.add_done_callback(take_failure)
        # Shielded: the time limit of one caller must not end what others wait for.
        return await asyncio.shield(request)

    def may_renew(self, credential: OAuth2Auth, refused: str) -> bool:
        """Forget a token that an endpoint answered with 401; whether another one may be asked for.

        Not more often than once a minute, or an endpoint that refuses every token would cause a
        token request for each job.
        """
        now_s = self._loop.time()
        kept = self._kept.get(credential)
        if isinstance(kept, _Token) and kept.text != refused:
            return True  # Another caller has renewed it meanwhile.
        if now_s - self._renewed_at_s.get(credential, float("-inf")) < RENEWED_EVERY_S:
            return False
        if len(self._renewed_at_s) >= _MAX_KEPT:
            self._renewed_at_s.clear()
        self._renewed_at_s[credential] = now_s
        self._kept.pop(credential, None)
        return True

    async def close(self) -> None:
        """End the requests."""
        requests = list(self._requests.values())
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)

    async def _fetch(self, credential: OAuth2Auth) -> str:
        try:
            token = await self._request(credential)
        except (TokenFailed, DestinationRefused) as fault:
            wait_s = FAILED_FOR_S if type(fault) is TokenFailed else REFUSED_FOR_S
            self._keep(credential, _Failure(fault, self._loop.time() + wait_s))
            raise
        finally:
            del self._requests[credential]
        self._keep(credential, token)
        return token.text

    def _keep(self, credential: OAuth2Auth, result: _Token | _Failure) -> None:
        if len(self._kept) >= _MAX_KEPT:
            self._kept.clear()
        self._kept[credential] = result

    async def _request(self, credential: OAuth2Auth) -> _Token:
        url = httpx.URL(credential.token_url)
        tls = self._contexts.usual if url.scheme == "https" else None
        origin = Origin(url.raw_host.decode("ascii"), url.port or (443 if tls else 80), tls)
        try:
            answer = await self._client.send(origin, _encode(url, credential))
        except DestinationRefused:
            raise TokenUrlNotAllowed from None
        except Fault as fault:
            raise TokenFailed(fault.code) from None
        return _read(answer, self._loop.time())


def _encode(url: httpx.URL, credential: OAuth2Auth) -> bytes:
    secret = credential.client_secret.get_secret_value()
    form = {"grant_type": "client_credentials"}
    if credential.scope:
        form["scope"] = credential.scope
    if credential.audience:
        form["audience"] = credential.audience
    lines = ["accept: application/json", "content-type: application/x-www-form-urlencoded"]
    if credential.client_authentication == "body":
        form |= {"client_id": credential.client_id, "client_secret": secret}
    else:
        pair = f"{quote(credential.client_id, safe='')}:{quote(secret, safe='')}"
        lines.append(f"authorization: Basic {base64.b64encode(pair.encode()).decode()}")
    body = urlencode(form).encode()
    head = "\r\n".join(
        [
            f"POST {url.raw_path.decode('ascii')} HTTP/1.1",
            f"host: {url.netloc.decode('ascii')}",
            *lines,
            f"content-length: {len(body)}",
            "",
            "",
        ]
    )
    return head.encode("ascii") + body


def _read(answer: Answer, now_s: float) -> _Token:
    try:
        told = json.loads(answer.body)
    except (ValueError, RecursionError):
        told = None
    found = told if isinstance(told, dict) else {}
    if answer.status != _OK:
        error = found.get("error")
        named = f" {error}" if isinstance(error, str) and error in _ERRORS else ""
        is_refusal = answer.status in _CLIENT_ERRORS and answer.status not in _TRANSIENT
        raise (TokenRefused if is_refusal else TokenFailed)(f"{answer.status}{named}")
    text, kind = found.get("access_token"), found.get("token_type", "bearer")
    if not _is_token(text) or not isinstance(kind, str) or kind.lower() != "bearer":
        raise TokenFailed("200 without a bearer token")
    lasts_s = _seconds(found.get("expires_in"))
    used_s = min(max(lasts_s * _USED_SHARE, _LEAST_S), _LONGEST_S)
    return _Token(text, now_s + used_s)


def _seconds(told: object) -> float:
    """How long a token is valid; some token endpoints say it as a string."""
    try:
        lasts_s = float(told) if isinstance(told, int | float | str) else _USUAL_S
    except (ValueError, OverflowError):
        lasts_s = _USUAL_S
    return lasts_s if math.isfinite(lasts_s) else _USUAL_S


def _is_token(text: object) -> TypeGuard[str]:
    """Whether it can stand in a header: no blank, no line break, no sign beyond ASCII."""
    if not isinstance(text, str) or not 0 < len(text) <= _MAX_TOKEN_CHARACTERS:
        return False
    return text.isascii() and text.isprintable() and " " not in text


__all__ = ["ANSWER_BYTES", "FAILED_FOR_S", "REFUSED_FOR_S", "RENEWED_EVERY_S", "Tokens"]
