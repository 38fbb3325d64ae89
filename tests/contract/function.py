"""Functions of every kind that ask a test over a Unix socket, in each call, what to do.

The socket lets a test direct and watch functions in any process: the test's own, or one that
crashes.
"""

import asyncio
import base64
import json
import os
import socket
from typing import Any

from pydantic import BaseModel

from runtime import Batch, Context, Event, Reject, Retry
from runtime.message import Message


class Settings(BaseModel):
    """`stage` is the path of the socket at which the test answers."""

    stage: str


class Order(BaseModel):
    number: int


async def on_event(event: Event[bytes], ctx: Context) -> None:
    await _ask(ctx, event.message)


def on_event_in_thread(event: Event[bytes], ctx: Context) -> None:
    _ask_in_thread(ctx, event.message)


async def on_batch(batch: Batch[bytes], ctx: Context) -> None:
    await _ask(ctx, batch[0].message)


def on_batch_in_thread(batch: Batch[bytes], ctx: Context) -> None:
    _ask_in_thread(ctx, batch[0].message)


async def on_order(event: Event[Order], ctx: Context) -> None:
    await _ask(ctx, event.message)


def on_order_in_thread(event: Event[Order], ctx: Context) -> None:
    _ask_in_thread(ctx, event.message)


async def on_orders(batch: Batch[Order], ctx: Context) -> None:
    await _ask(ctx, batch[0].message)


def on_orders_in_thread(batch: Batch[Order], ctx: Context) -> None:
    _ask_in_thread(ctx, batch[0].message)


async def on_tick(ctx: Context) -> None:
    await _ask(ctx, ctx._message)


def on_tick_in_thread(ctx: Context) -> None:
    _ask_in_thread(ctx, ctx._message)


async def _ask(ctx: Context, message: Message | None) -> None:
    reader, writer = await asyncio.open_unix_connection(ctx.settings.stage)
    try:
        writer.write(_report(ctx, message))
        answer = await reader.readline()
    finally:
        writer.close()
    _act(ctx, answer)


def _ask_in_thread(ctx: Context, message: Message | None) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(ctx.settings.stage)
        connection.sendall(_report(ctx, message))
        answer = connection.makefile("rb").readline()
    _act(ctx, answer)


def _report(ctx: Context, message: Message | None) -> bytes:
    assert message is not None
    told = {
        "attempt": ctx.attempt,
        "pid": os.getpid(),
        "stream": message.stream,
        "sequence": message.sequence,
        "subject": message.subject,
        "stored_at_ns": message.stored_at_ns,
        "data": base64.b64encode(message.data).decode(),
        "headers": dict(message.headers),
    }
    return json.dumps(told).encode() + b"\n"


def _act(ctx: Context, answer: bytes) -> None:
    """Do what the test answered; no answer means that the test has ended without this call."""
    if not answer:
        return
    told: dict[str, Any] = json.loads(answer)
    if "schedule" in told:
        ctx.use_retry_schedule(told["schedule"], jitter=0)
    match told["act"]:
        case "raise":
            _raise(told["error"])
        case "retry":
            raise Retry(told["reason"], delay_s=told["delay_s"])
        case "reject":
            raise Reject(told["code"], told["reason"])
        case "crash":
            os._exit(1)


def _raise(error: str) -> None:
    match error:
        case "ValueError":
            raise ValueError("broken")
        case "SystemExit":
            raise SystemExit(3)
        case "CancelledError":
            raise asyncio.CancelledError
        case "StopIteration":
            next(iter(()))
