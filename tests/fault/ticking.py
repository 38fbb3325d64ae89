"""Scheduled functions that say in a stream which tick they begin."""

import os
from typing import Any

from runtime import Context


async def tick(ctx: Context[Any]) -> None:
    """Publish the tick's time, the attempt and the process."""
    body = f"{ctx.due_at} {ctx.attempt} {os.getpid()}"
    await ctx.publish_core(f"ticked.{ctx.function}", body.encode())


async def go_on(ctx: Context[Any]) -> None:
    """As `tick`, and go on for ever."""
    await tick(ctx)
    await ctx.stopping.wait()
