"""Publishes the public keys of webhooks, so that a receiver needs no secret to verify them.

Everybody may read the keys: they are made to be shown, and a receiver has no key of this
installation. The answer tells neither URLs nor routes, and an unknown tenant has no keys, as one
without signing keys.
"""

import base64
import hashlib
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from functions.domain.identifiers import TenantId
from functions.domain.named_sql import read_queries
from functions.domain.signing_keys import PUBLIC_PREFIX
from runtime import Context, Event

_QUERIES = read_queries(Path(__file__).with_name("public_keys.sql"))
_MAX_KEYS = 1000
_MAX_TENANTS = 10_000
KEPT_S = 15.0


class PublicKeysRequest(BaseModel):
    """A request for a tenant's public keys."""

    model_config = ConfigDict(extra="forbid")

    tenant_id: TenantId


class PublicKey(BaseModel):
    """An Ed25519 key as a JSON Web Key, and in the form of Standard Webhooks.

    Source: RFC 8037, section 2.

    Attributes:
        kid: the beginning of the key's SHA-256, in hexadecimal digits.
        x: the key in base64url.
        whpk: `whpk_` and the key in base64.
    """

    kty: str = "OKP"
    crv: str = "Ed25519"
    use: str = "sig"
    alg: str = "EdDSA"
    kid: str
    x: str
    whpk: str


class PublicKeys(BaseModel):
    """A JSON Web Key Set."""

    keys: list[PublicKey]


class KeptKeys:
    """The last answers by tenant, each for a while: nobody has to prove who asks."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[PublicKeys, float]] = {}

    def get(self, tenant_id: str) -> PublicKeys | None:
        """The answer to a request for this tenant; None if it has to be read."""
        kept = self._kept.get(tenant_id)
        return kept[0] if kept is not None and kept[1] > time.monotonic() else None

    def put(self, tenant_id: str, keys: PublicKeys) -> None:
        """Keep an answer."""
        if len(self._kept) >= _MAX_TENANTS:
            self._kept.clear()
        self._kept[tenant_id] = (keys, time.monotonic() + KEPT_S)


async def start(ctx: Context) -> KeptKeys:
    """Begin without answers."""
    del ctx
    return KeptKeys()


async def list_public_keys(event: Event[PublicKeysRequest], ctx: Context[KeptKeys]) -> PublicKeys:
    """The public keys with which a tenant's webhooks can be verified."""
    tenant_id = event.data.tenant_id
    if kept := ctx.state.get(tenant_id):
        return kept
    rows = await ctx.postgres.fetch(_QUERIES["public_keys"], tenant_id, _MAX_KEYS)
    keys = PublicKeys(keys=[_as_jwk(row["public_key"]) for row in rows])
    ctx.state.put(tenant_id, keys)
    return keys


def _as_jwk(whpk: str) -> PublicKey:
    raw = base64.b64decode(whpk.removeprefix(PUBLIC_PREFIX))
    x = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    return PublicKey(kid=hashlib.sha256(raw).hexdigest()[:16], x=x, whpk=whpk)


__all__ = ["KEPT_S", "PublicKeys", "list_public_keys", "start"]
