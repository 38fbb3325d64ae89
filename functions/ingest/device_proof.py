"""Endpoint by which doors ask whether a sender is the device that it names."""

from functions.domain.device_proof import Claims, Standings, judge_claim
from functions.domain.registry import Registry
from runtime import Context, Event


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
    return Standings(
        standings=[
            judge_claim(claim, devices[(claim.tenant_id, claim.device_id)]) for claim in claims
        ]
    )


__all__ = ["prove_devices", "start", "stop"]
