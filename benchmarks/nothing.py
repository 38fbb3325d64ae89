"""Functions that do nothing, for our host: what is left is the host's own cost."""

import asyncio
from typing import Any

from runtime import Batch, Context, Event


async def single(event: Event[bytes], ctx: Context) -> None:
    """Take one message."""


async def batch(batch: Batch[bytes], ctx: Context) -> None:
    """Take a batch."""


async def serve_tenant(event: Event[dict[str, Any]], ctx: Context) -> None:
    """Take 2 ms for one message, and say that a quiet tenant's is served."""
    await asyncio.sleep(0.002)
    if event.subject.endswith(".quiet"):
        await ctx.publish("served.quiet", str(event.data["n"]).encode())
