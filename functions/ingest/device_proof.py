"""Endpoint by which doors ask whether a sender is the device that it names."""

import time
from pathlib import Path

from functions.domain.device_proof import Claim, Claims, Standings, judge_certificate, judge_claim
from functions.domain.named_sql import read_queries
from functions.domain.registry import Registry
from runtime import Context, Event

_QUERIES = read_queries(Path(__file__).with_name("device_proof.sql"))


async def start(ctx: Context[Registry]) -> Registry:
    """Start to listen for changes of the registry."""
    registry = Registry(ctx.postgres, ctx.log)
    await registry.start()
    return registry


async def stop(ctx: Context[Registry]) -> None:
    """Return the registry's connection to the pool."""
    await ctx.state.stop()


async def prove_devices(event: Event[Claims], ctx: Context[Registry]) -> Standings:
    """The standing of each claim, by the registry as it is now."""
    claims = event.data.claims
    devices = await ctx.state.devices((claim.tenant_id, claim.device_id) for claim in claims)
    active = await _find_active(ctx, [claim for claim in claims if claim.certificate_sha256])
    standings, now_ns = [], time.time_ns()
    for claim in claims:
        device = devices[(claim.tenant_id, claim.device_id)]
        if claim.certificate_sha256:
            standings.append(judge_certificate(device, is_active=claim in active))
        else:
            standings.append(judge_claim(claim, device, now_ns))
    return Standings(standings=standings)


async def _find_active(ctx: Context[Registry], claims: list[Claim]) -> set[Claim]:
    """Those of the claims whose certificate is the device's, active and valid now."""
    if not claims:
        return set()
    rows = await ctx.postgres.fetch(
        _QUERIES["active_certificates"],
        [claim.tenant_id for claim in claims],
        [claim.device_id for claim in claims],
        [claim.certificate_sha256 for claim in claims],
    )
    return {claims[row["number"] - 1] for row in rows}


__all__ = ["prove_devices", "start", "stop"]
