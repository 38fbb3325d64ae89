"""Subscriptions: pass each message of a subject to a callback, and log what callbacks raise."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription as NatsSubscription

from runtime.message import Message
from runtime.observe.logs import get_logger

log = get_logger("runtime.broker")

Callback = Callable[[Message], Awaitable[None] | None]

TELL_EVERY_S = 10.0
"""Least time between two log lines about the same failure of the same callback."""


class Subscription:
    """A subscription, until `unsubscribe` or `drain`."""

    def __init__(self, inner: NatsSubscription) -> None:
        self._inner = inner

    async def unsubscribe(self) -> None:
        """Stop at once; messages that have arrived and were not handled are dropped."""
        try:
            await self._inner.unsubscribe()
        except (nats.errors.ConnectionClosedError, nats.errors.BadSubscriptionError):
            log.debug("Subscription was gone already")

    async def drain(self, timeout_s: float) -> None:
        """Stop after the callback has had every message that the server has sent."""
        # In a task of its own: the library swallows the cancellation of the draining task, and so
        # does `wait_for` before Python 3.12. Source: nats-py 2.16 `subscription.py`, `_drain`.
        draining = asyncio.ensure_future(self._inner.drain())  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(draining)
        except (TimeoutError, nats.errors.Error):
            log.debug("Subscription ended without a full drain")
        finally:
            draining.cancel()


class CallbackFailures:
    """Logs what callbacks raise, with type, text and traceback; repetitions only as a number.

    The client library itself only passes the exception to the callback for connection errors.
    """

    def __init__(self) -> None:
        self._told_at_s: dict[tuple[str, str], float] = {}
        self._untold: dict[tuple[str, str], int] = {}

    def tell(self, callback: str, failure: BaseException) -> None:
        """Log a failure, unless the same failure was logged less than `TELL_EVERY_S` ago."""
        kind = (callback, type(failure).__name__)
        now_s = time.monotonic()
        if now_s - self._told_at_s.get(kind, float("-inf")) < TELL_EVERY_S:
            self._untold[kind] = self._untold.get(kind, 0) + 1
            return
        self._told_at_s[kind] = now_s
        log.error(
            "A subscription's callback raised",
            callback=callback,
            untold=self._untold.pop(kind, 0),
            exc_info=failure,
        )


class CallbackSubscription(NatsSubscription):
    """The client library's subscription, with messages passed to a callback one after the other.

    A plain function is called at once, by the parser, and must not block; a coroutine function is
    called from a task, through a queue. A callback that raised, or cancelled itself, is called with
    the next message all the same.
    """

    def __init__(
        self,
        client: Client,
        sid: int,
        subject: str,
        *,
        callback: Callback,
        queue: str,
        failures: CallbackFailures,
    ) -> None:
        super().__init__(client, sid, subject, queue=queue)
        self._callback: Callable[[Message], Any] = callback
        self._failures = failures
        # When the library drains, it waits for this queue and cancels this task.
        self._pending_queue: asyncio.Queue[Message] = asyncio.Queue()  # type: ignore[assignment]
        self._wait_for_msgs_task: asyncio.Task[None] | None = None  # type: ignore[assignment]
        self._is_queued = asyncio.iscoroutinefunction(callback)
        if self._is_queued:
            self._wait_for_msgs_task = asyncio.create_task(
                self._work(), name=f"subscription {subject}"
            )

    def take(self, message: Message) -> None:
        """Pass a message to the callback: now, or after the messages before it."""
        if self._is_queued:
            self._pending_queue.put_nowait(message)
            return
        try:
            self._callback(message)
        except Exception as failure:  # noqa: BLE001 - a callback's own
            self._tell(failure)

    async def _work(self) -> None:
        task = asyncio.current_task()
        while True:
            message = await self._pending_queue.get()
            try:
                await self._callback(message)
            except asyncio.CancelledError as cancellation:
                if task is None or task.cancelling():
                    raise
                self._tell(cancellation)
            except Exception as failure:  # noqa: BLE001 - a callback's own
                self._tell(failure)
            finally:
                self._pending_queue.task_done()

    def _tell(self, failure: BaseException) -> None:
        called = getattr(self._callback, "func", self._callback)
        name = getattr(called, "__qualname__", type(called).__name__)
        self._failures.tell(name, failure)
