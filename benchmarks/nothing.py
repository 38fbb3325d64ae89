"""Functions that do nothing, to measure the host's own cost."""

import asyncio
from typing import Any

from runtime import Batch, Context, Event


async def single(event: Event[bytes], ctx: Context) -> None:
    """Do nothing with one message."""


async def batch(batch: Batch[bytes], ctx: Context) -> None:
    """Do nothing with a batch."""


async def serve_tenant(event: Event[dict[str, Any]], ctx: Context) -> None:
    """Sleep 2 ms for one message; report when a quiet tenant's message is served."""
    await asyncio.sleep(0.002)
    if event.subject.endswith(".quiet"):
        await ctx.publish("served.quiet", str(event.data["n"]).encode())
