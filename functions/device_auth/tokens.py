"""Reads nats-server's authorization requests and writes its answers, as JSON Web Tokens.

Source: NATS ADR-26 (auth callout) and ADR-14 (JWT library): a token is signed with ed25519 and
names its signer by nkey; an answer has the user token that the server shall believe, or an error.
"""

import base64
import binascii
import hashlib
import time
from dataclasses import dataclass
from typing import Any

import orjson
from cryptography.exceptions import InvalidSignature

from runtime import AccountKey, server_key

MAX_REQUEST_BYTES = 65_536
"""A request with a chain of certificates has some 10 KB."""

_HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}
_PARTS = 3
_VERSION = 2


class BadRequest(Exception):  # noqa: N818 - names what it is
    """What arrived is no authorization request of a nats-server."""


@dataclass(frozen=True, slots=True)
class AuthRequest:
    """A client that a server asks about.

    Attributes:
        server_id: the server's key, to which the answer is addressed.
        user_key: the key that the server gave the client for this connection.
        host: the client's address.
        is_mqtt: whether it is an MQTT client.
        client_id: its MQTT client id; empty for another client.
        user: the user name that it sent.
        password: the password that it sent; never logged.
        certificate: its own certificate in PEM, when the listener verified its chain.
    """

    server_id: str
    user_key: str
    host: str
    is_mqtt: bool
    client_id: str
    user: str
    password: str
    certificate: str = ""

    def __repr__(self) -> str:
        """Without the password."""
        return f"AuthRequest(user={self.user!r}, client_id={self.client_id!r}, host={self.host!r})"


def read_request(data: bytes) -> AuthRequest:
    """The client that a server asks about; the request's signature is checked.

    Raises:
        BadRequest: this is no request that a server has signed; the text repeats none of it.
    """
    claims = _read_claims(data)
    asked = claims.get("nats")
    if not isinstance(asked, dict) or asked.get("type") != "authorization_request":
        raise BadRequest("the token is no authorization request")
    client, options = _object(asked, "client_info"), _object(asked, "connect_opts")
    server_id = _text(_object(asked, "server_id"), "id")
    if server_id != claims.get("iss"):
        raise BadRequest("the request is not signed by the server that asks")
    return AuthRequest(
        server_id=server_id,
        user_key=_text(asked, "user_nkey"),
        host=_text(client, "host"),
        is_mqtt=client.get("type") == "mqtt",
        client_id=_text(client, "mqtt_id"),
        user=_text(options, "user"),
        password=_text(options, "pass"),
        certificate=_certificate(asked.get("client_tls")),
    )


def write_accepted(
    request: AuthRequest,
    key: AccountKey,
    *,
    account: str,
    name: str,
    permissions: dict[str, Any],
    until_s: int = 0,
) -> bytes:
    """The answer that lets the client in.

    Args:
        request: what is answered.
        key: the key of the issuer that the server's configuration names.
        account: the account in which the client is then.
        name: names the client in the server's monitoring.
        permissions: the user's claims: `pub`, `sub`, `allowed_connection_types` and others.
        until_s: when the server ends the session, in seconds since 1970; 0 for never.
    """
    user = {
        "type": "user",
        "version": _VERSION,
        "subs": -1,
        "data": -1,
        "payload": -1,
        **permissions,
    }
    claims = {"sub": request.user_key, "aud": account, "name": name, "nats": user}
    token = _sign(key, claims | ({"exp": until_s} if until_s else {}))
    return _answer(request, key, {"jwt": token})


def write_refused(request: AuthRequest, key: AccountKey, reason: str) -> bytes:
    """The answer that keeps the client out; `reason` is for the server's log."""
    return _answer(request, key, {"error": reason})


def _answer(request: AuthRequest, key: AccountKey, content: dict[str, str]) -> bytes:
    answer = {"type": "authorization_response", "version": _VERSION, **content}
    claims = {"sub": request.user_key, "aud": request.server_id, "nats": answer}
    return _sign(key, claims).encode()


def _sign(key: AccountKey, claims: dict[str, Any]) -> str:
    claims = {"iat": int(time.time()), "iss": key.public, **claims}
    digest = hashlib.sha256(orjson.dumps(claims)).digest()
    claims["jti"] = base64.b32encode(digest).decode().rstrip("=")
    signed = f"{_encode(orjson.dumps(_HEADER))}.{_encode(orjson.dumps(claims))}"
    return f"{signed}.{_encode(key.sign(signed.encode()))}"


def _read_claims(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_REQUEST_BYTES:
        raise BadRequest(f"the request has more than {MAX_REQUEST_BYTES} bytes")
    parts = data.split(b".")
    if len(parts) != _PARTS:
        raise BadRequest("the request is no token")
    try:
        header, claims = orjson.loads(_decode(parts[0])), orjson.loads(_decode(parts[1]))
        signature = _decode(parts[2])
    except (ValueError, binascii.Error):
        raise BadRequest("the request is no token") from None
    if not isinstance(claims, dict) or header != _HEADER:
        raise BadRequest("the token is of another kind")
    key = server_key(str(claims.get("iss")))
    if key is None:
        raise BadRequest("the request is not signed by a server")
    try:
        key.verify(signature, parts[0] + b"." + parts[1])
    except InvalidSignature:
        raise BadRequest("the request's signature is wrong") from None
    return claims


def _certificate(tls: object) -> str:
    """The client's own certificate, the first of the first chain that the listener verified."""
    chains = tls.get("verified_chains") if isinstance(tls, dict) else None
    first = chains[0] if isinstance(chains, list) and chains else None
    leaf = first[0] if isinstance(first, list) and first else ""
    return leaf if isinstance(leaf, str) else ""


def _object(claims: dict[str, Any], name: str) -> dict[str, Any]:
    found = claims.get(name)
    return found if isinstance(found, dict) else {}


def _text(claims: dict[str, Any], name: str) -> str:
    found = claims.get(name)
    return found if isinstance(found, str) else ""


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: bytes) -> bytes:
    return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))


__all__ = [
    "MAX_REQUEST_BYTES",
    "AuthRequest",
    "BadRequest",
    "read_request",
    "write_accepted",
    "write_refused",
]
