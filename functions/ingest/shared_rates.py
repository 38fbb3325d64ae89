"""Endpoint by which gateways, which have no database, share their rates."""

from functions.domain.rate_sharing import Shared, Uses, share_uses
from runtime import Context, Event


async def share_rates(event: Event[Uses], ctx: Context[None]) -> Shared:
    """Add what a process took to what all of its group took; what that comes to."""
    return await share_uses(ctx.postgres, event.data)


__all__ = ["share_rates"]
