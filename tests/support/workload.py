"""Functions of every shape, whose behaviour a test decides.

A test binds a function under a unique name, and puts the behaviour into `behaviours`.
"""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from runtime import Batch, Context, Event

behaviours: dict[str, Callable[..., Any]] = {}
"""What each function does, by its name: called with the context and the event or batch, if any."""


class Order(BaseModel):
    number: int


class Question(BaseModel):
    number: int = 0


async def on_event(event: Event[bytes], ctx: Context) -> None:
    await behaviours[ctx.function](ctx, event)


def on_event_in_thread(event: Event[bytes], ctx: Context) -> None:
    behaviours[ctx.function](ctx, event)


async def on_batch(batch: Batch[bytes], ctx: Context) -> None:
    await behaviours[ctx.function](ctx, batch)


async def on_orders(batch: Batch[Order], ctx: Context) -> None:
    await behaviours[ctx.function](ctx, batch)


async def on_tick(ctx: Context) -> None:
    await behaviours[ctx.function](ctx)


async def on_request(event: Event[Question], ctx: Context) -> Any:
    return await behaviours[ctx.function](ctx, event)


def on_request_in_thread(event: Event[Question], ctx: Context) -> Any:
    return behaviours[ctx.function](ctx, event)


async def on_raw_request(event: Event[bytes], ctx: Context) -> bytes:
    answer: bytes = await behaviours[ctx.function](ctx, event)
    return answer


async def run(ctx: Context) -> None:
    await behaviours[ctx.function](ctx)
