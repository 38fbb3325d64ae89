"""Asks which senders are the devices that they name, and caches the answers."""

import asyncio
from typing import NamedTuple

import orjson

from functions.domain.device_proof import MAX_CLAIMS, SUBJECT, MadeClaim, Standing
from functions.http_gateway.registry_changes import RegistryChanges
from runtime import Context, RequestFailed, Unavailable, Unsendable

_ASK_AGAIN_AFTER_S = 1.0
_TIMEOUT_S = 2.0
_MAX_CLAIMS_KEPT = 100_000


class _Known(NamedTuple):
    standing: Standing
    at_s: float


class DeviceProofs:
    """The standing of claims, asked from endpoint `prove_devices`.

    Concurrent questions travel in one request, and one request is under way at a time, so whoever
    sends claims that nobody has proved costs the registry a bounded part of its time.

    An answer is used until the device or its tenant changes, and for `token_cache_s` at most. While
    nobody answers, a claim that was proved before, and of which no change was heard, stays proved:
    function `ingest` checks every message again.
    """

    def __init__(self, ctx: Context, changes: RegistryChanges) -> None:
        self._ctx = ctx
        self._changes = changes
        self._fresh_s: float = ctx.settings.token_cache_s
        # Apart, so that a flood of guesses does not evict what devices have proved.
        self._proved: dict[MadeClaim, _Known] = {}
        self._others: dict[MadeClaim, _Known] = {}
        self._asked: dict[MadeClaim, asyncio.Future[Standing | None]] = {}
        self._asking: asyncio.Task[None] | None = None
        self._silent_until_s = 0.0
        self._now_s = asyncio.get_running_loop().time

    async def find(self, claim: MadeClaim) -> Standing | None:
        """The standing of a claim; None when nobody answers and the claim was never proved."""
        now_s = self._now_s()
        known = self._proved.get(claim) or self._others.get(claim)
        is_current = known is not None and self._changes.is_current(known.at_s, claim[0], claim[1])
        if known is not None and is_current and now_s - known.at_s < self._fresh_s:
            return known.standing
        standing = None if now_s < self._silent_until_s else await self._ask(claim)
        if standing is None and is_current and claim in self._proved:
            return Standing.PROVEN
        return standing

    async def close(self) -> None:
        """Cancel a request under way."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def _ask(self, claim: MadeClaim) -> Standing | None:
        answer = self._asked.get(claim)
        if answer is None:
            answer = self._asked[claim] = asyncio.get_running_loop().create_future()
            if self._asking is None:
                self._asking = asyncio.create_task(self._ask_all())
        # Shielded: a request that is cancelled must not cancel the answer of the others.
        return await asyncio.shield(answer)

    async def _ask_all(self) -> None:
        try:
            while self._asked:
                batch = {claim: self._asked[claim] for claim in list(self._asked)[:MAX_CLAIMS]}
                standings = await self._request(list(batch))
                for claim, answer in batch.items():
                    del self._asked[claim]
                    if not answer.done():
                        answer.set_result(standings.get(claim))
        finally:
            self._asking = None
            for answer in self._asked.values():
                answer.cancel()
            self._asked.clear()

    async def _request(self, claims: list[MadeClaim]) -> dict[MadeClaim, Standing]:
        asked = orjson.dumps({"claims": [_as_fields(claim) for claim in claims]})
        loop = asyncio.get_running_loop()
        asked_at_s = loop.time()
        try:
            reply = await self._ctx.request(SUBJECT, asked, timeout_s=_TIMEOUT_S)
            told = [Standing(each) for each in orjson.loads(reply.data)["standings"]]
            standings = dict(zip(claims, told, strict=True))
        except (RequestFailed, Unavailable, Unsendable) as failure:
            self._silent_until_s = loop.time() + _ASK_AGAIN_AFTER_S
            self._ctx.log.warning(
                "The registry of devices does not answer; only devices that were known are served.",
                error_type=type(failure).__name__,
            )
            return {}
        except (ValueError, KeyError, TypeError):
            self._silent_until_s = loop.time() + _ASK_AGAIN_AFTER_S
            self._ctx.log.exception("The registry of devices gave an answer that is none.")
            return {}
        self._keep(standings, asked_at_s)
        return standings

    def _keep(self, standings: dict[MadeClaim, Standing], now_s: float) -> None:
        for claim, standing in standings.items():
            is_proved = standing is Standing.PROVEN
            kept, other = (
                (self._proved, self._others) if is_proved else (self._others, self._proved)
            )
            other.pop(claim, None)
            if len(kept) >= _MAX_CLAIMS_KEPT:
                # A dict keeps the order of insertion: drop the claim that was asked longest ago.
                del kept[next(iter(kept))]
            kept.pop(claim, None)
            kept[claim] = _Known(standing, now_s)


def _as_fields(claim: MadeClaim) -> dict[str, str]:
    """Without the field that is empty: a host of an older version does not know certificates."""
    return {name: value for name, value in claim._asdict().items() if value}
