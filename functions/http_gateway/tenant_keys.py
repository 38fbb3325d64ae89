"""Tells which tenant sends a request, by the key that it shows."""

import asyncio
from typing import NamedTuple

import orjson

from functions.domain.tenant_keys import MAX_KEY_LENGTH, MAX_KEYS, SUBJECT, digest_of
from functions.http_gateway.attempts import FailedAttempts
from functions.http_gateway.client_addresses import ClientAddresses
from functions.http_gateway.keys import KeyCheck, bearer_token
from functions.http_gateway.problems import ProblemError
from functions.http_gateway.registry_changes import RegistryChanges
from functions.http_gateway.requests import Request
from runtime import Context, RequestFailed, Unavailable, Unsendable

_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="tenant"'}
_TIMEOUT_S = 2.0
_AWAY_S = 5
_MAX_KEPT = 100_000


class _Known(NamedTuple):
    tenant_id: str | None
    at_s: float


class TenantAdmission:
    """Checks the key that a request shows, and limits the wrong ones."""

    def __init__(
        self, ctx: Context, admin: KeyCheck, owners: "TenantKeys", addresses: ClientAddresses
    ) -> None:
        self._admin = admin
        self._owners = owners
        self._addresses = addresses
        self._attempts = FailedAttempts(ctx.log, "tenant")

    async def require(self, request: Request) -> str | None:
        """Require a tenant's key, or the admin's; the tenant, None for the admin.

        Raises:
            ProblemError: 401 without a key, 403 with one that is not valid, 429 after too many of
                these, 503 when nobody can say.
        """
        key = bearer_token(request)
        if not key:
            raise ProblemError(
                401, "UNAUTHORIZED", "Send the tenant's key as a bearer token.", headers=_CHALLENGE
            )
        source = self._addresses.source(request.scope)
        digest = digest_of(key.decode("latin-1"))
        self._attempts.require_room(source, "tenant", digest)
        if self._admin.is_shown(key):
            self._attempts.succeed(source, digest)
            return None
        tenant_id = await self._owners.find(digest) if len(key) <= MAX_KEY_LENGTH else None
        if tenant_id is None:
            refusal = ProblemError(403, "FORBIDDEN", "This is not the key of an active tenant.")
            raise self._attempts.fail(source, "tenant", refusal)
        self._attempts.succeed(source, digest)
        return tenant_id


class TenantKeys:
    """The tenants of keys, asked from endpoint `prove_tenant_keys`, and cached.

    Concurrent questions travel in one request, and one request is under way at a time, so guesses
    cost the database a bounded part of its time. An answer is used until the tenant changes, and
    for `token_cache_s` at most; a key that is revoked is refused after that time.
    """

    def __init__(self, ctx: Context, changes: RegistryChanges) -> None:
        self._ctx = ctx
        self._changes = changes
        self._fresh_s: float = ctx.settings.token_cache_s
        # Apart, so that a flood of guesses does not evict the keys that are valid.
        self._valid: dict[str, _Known] = {}
        self._others: dict[str, _Known] = {}
        self._asked: dict[str, asyncio.Future[bool]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Cancel a request under way."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def find(self, digest: str) -> str | None:
        """The tenant of the key with this SHA-256; None when it is not valid.

        Raises:
            ProblemError: 503, because nobody answers.
        """
        now_s = asyncio.get_running_loop().time()
        known = self._valid.get(digest) or self._others.get(digest)
        if known is None or not self._is_fresh(known, now_s):
            answer = self._asked.get(digest)
            if answer is None:
                answer = self._asked[digest] = asyncio.get_running_loop().create_future()
                if self._asking is None:
                    self._asking = asyncio.create_task(self._ask_all())
            # Shielded: a request that is cancelled must not cancel the answer of the others.
            if not await asyncio.shield(answer):
                raise ProblemError(
                    503,
                    "REGISTRY_UNAVAILABLE",
                    "The key cannot be checked at present; send the request again.",
                    headers={"Retry-After": str(_AWAY_S)},
                )
            known = self._valid.get(digest) or self._others.get(digest)
        return None if known is None else known.tenant_id

    def _is_fresh(self, known: _Known, now_s: float) -> bool:
        return now_s - known.at_s < self._fresh_s and (
            known.tenant_id is None or self._changes.is_current(known.at_s, known.tenant_id)
        )

    async def _ask_all(self) -> None:
        try:
            while self._asked:
                batch = {key: self._asked[key] for key in list(self._asked)[:MAX_KEYS]}
                is_known = await self._request(list(batch))
                for key, answer in batch.items():
                    del self._asked[key]
                    if not answer.done():
                        answer.set_result(is_known)
        finally:
            self._asking = None
            for answer in self._asked.values():
                answer.cancel()
            self._asked.clear()

    async def _request(self, digests: list[str]) -> bool:
        """Ask for the tenants of keys; whether there was an answer."""
        asked_at_s = asyncio.get_running_loop().time()
        try:
            asked = orjson.dumps({"keys": digests})
            reply = await self._ctx.request(SUBJECT, asked, timeout_s=_TIMEOUT_S)
            found = dict(zip(digests, orjson.loads(reply.data)["tenants"], strict=True))
        except (RequestFailed, Unavailable, Unsendable) as failure:
            self._ctx.log.warning(
                "The tenants' keys cannot be checked; their requests are answered 503.",
                error_type=type(failure).__name__,
            )
            return False
        except (ValueError, KeyError, TypeError):
            self._ctx.log.exception("The check of the tenants' keys gave an answer that is none.")
            return False
        for digest, tenant_id in found.items():
            is_valid = isinstance(tenant_id, str)
            kept, other = (self._valid, self._others) if is_valid else (self._others, self._valid)
            other.pop(digest, None)
            if len(kept) >= _MAX_KEPT:
                # A dict keeps the order of insertion: drop the key that was asked longest ago.
                del kept[next(iter(kept))]
            kept.pop(digest, None)
            kept[digest] = _Known(tenant_id if is_valid else None, asked_at_s)
        return True
