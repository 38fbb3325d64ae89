"""The continuous pull loop of one durable consumer.

Overlapping pull requests, sized by the free slots of whoever handles the messages, so that nothing
is fetched that has no place and a slow message never holds the next request back. Source: NATS
ADR-37 (JetStream simplification, `consume`) and ADR-13 (pull requests and their status codes).
"""

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass

from nats.aio.msg import Msg

from runtime.broker.connection import ApiError, Broker, Subscription
from runtime.errors import Unavailable
from runtime.message import NO_HEADERS, Message
from runtime.observe.logs import get_logger

log = get_logger("runtime.puller")

EXPIRES_S = 30.0
HEARTBEAT_S = 5.0
MISSED_HEARTBEATS = 2.5
BACKOFF_FIRST_S = 0.2
BACKOFF_CAP_S = 10.0
STALE_DRAIN_S = 5.0
_NS = 1_000_000_000
_TOKENS_V1 = 9


Origin = tuple[str, str, str, str]


def origin_of(reply: str) -> Origin:
    """What is the same for each delivery of a message, and for that of no other.

    Its stream, the consumer, its sequence and the time it was stored: a stream that is made anew
    begins with the first sequence again.

    Source: NATS ADR-15, what follows `$JS.ACK.`; version 2 has the domain and the account first.
    """
    tokens = reply.split(".")
    first = 2 if len(tokens) == _TOKENS_V1 else 4
    return tokens[first], tokens[first + 1], tokens[first + 3], tokens[first + 5]


@dataclass(frozen=True, slots=True)
class Slots:
    """How the loop learns what it may ask for.

    Attributes:
        capacity: the most messages that may be here at once, at this moment.
        held: how many are here now, unsettled.
    """

    capacity: Callable[[], int]
    held: Callable[[], int]


class Puller:
    """Keeps a durable consumer flowing into `deliver` until `stop`.

    Heals itself: a lost connection, a missing heartbeat, a leadership change and a deleted consumer
    all end in a new request, the last after `recreate`. `deliver` is called on the event loop, in
    the order in which the server sent the messages, and must not block. `renewed` is called when
    the consumer has turned out to be another than before, whoever made it anew.
    """

    def __init__(
        self,
        broker: Broker,
        stream: str,
        durable: str,
        *,
        slots: Slots,
        deliver: Callable[[Message], None],
        recreate: Callable[[], Awaitable[object]],
        renewed: Callable[[], None] = lambda: None,
    ) -> None:
        self.stream = stream
        self.durable = durable
        self._log = log.bind(stream=stream, durable=durable)
        self._broker = broker
        self._slots = slots
        self._deliver = deliver
        self._recreate = recreate
        self._renewed = renewed
        self._created = ""
        self._outstanding = 0
        self._requests = 0
        self._max_request = 0
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._stale: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._ready = asyncio.Event()
        self._trouble = ""
        self._failures = 0
        self._heard_at_s = 0.0
        self._stack = ExitStack()
        self._time = asyncio.get_running_loop().time

    @property
    def outstanding(self) -> int:
        """Messages asked for and not arrived yet."""
        return self._outstanding

    @property
    def is_flowing(self) -> bool:
        """Whether the server was heard within the heartbeat bound and nothing is being healed."""
        quiet_s = self._time() - self._heard_at_s
        return not self._trouble and quiet_s < HEARTBEAT_S * MISSED_HEARTBEATS * 2

    async def start(self) -> None:
        """Begin to pull."""
        self._stack.callback(self._broker.on_reconnect(self._forget_requests))
        self._task = asyncio.create_task(self._run(), name=f"pull {self.stream}/{self.durable}")
        await self._ready.wait()

    def poke(self) -> None:
        """Say that slots became free; wakes the loop when another request is worth it."""
        if self._request_size() and not self._wake.is_set():
            self._wake.set()

    async def stop(self, timeout_s: float) -> None:
        """Pull no more. What the server had sent by now has been delivered when this returns.

        With a timeout of 0 what has not been delivered yet is dropped, and comes again.
        """
        self._stack.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._ready.set()  # Whoever is still starting it need not wait any more.
        if self._subscription is not None:
            if timeout_s > 0:
                await self._subscription.drain(timeout_s)
            else:
                await self._subscription.unsubscribe()
            self._subscription = None
        if self._stale is not None:
            if timeout_s <= 0:
                self._stale.cancel()
            await asyncio.gather(self._stale, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self._turn()
            except (Unavailable, ApiError) as failure:
                self._trouble = self._trouble or str(failure)
                await self._back_off()

    async def _turn(self) -> None:
        if self._trouble:
            await self._heal()
        if self._subscription is None:
            await self._look()
            await self._open_inbox()
        # Cleared before looking: a slot that is freed while the request is being sent counts.
        self._wake.clear()
        # What is asked while the connection is down would reach the server after it is rebuilt,
        # with an inbox that has been replaced by then.
        if self._broker.is_connected and (size := self._request_size()):
            await self._request(size)
        self._ready.set()
        try:
            # Not `wait_for`: before Python 3.12 it swallows a cancellation that comes together
            # with what it waits for, so that `stop` would wait for ever.
            async with asyncio.timeout(HEARTBEAT_S):
                await self._wake.wait()
        except TimeoutError:
            self._check_heartbeat()

    def _request_size(self) -> int:
        """How many to ask for now: 0 until a quarter of the capacity is free, or nothing is due."""
        capacity = self._slots.capacity()
        free = capacity - self._slots.held() - self._outstanding
        if free <= 0 or (self._outstanding and free < capacity // 4):
            return 0
        return min(free, self._max_request) if self._max_request else free

    async def _request(self, size: int) -> None:
        self._requests += 1
        self._outstanding += size
        if self._outstanding == size:
            self._heard_at_s = self._time()
        body = {
            "batch": size,
            "expires": int(EXPIRES_S * _NS),
            "idle_heartbeat": int(HEARTBEAT_S * _NS),
        }
        await self._broker.send(
            f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{self.durable}",
            json.dumps(body).encode(),
            f"{self._inbox}.{self._requests}",
        )

    async def _open_inbox(self) -> None:
        """A fresh inbox each time: requests from before a reconnect may live on at the server."""
        self._inbox = f"_INBOX.{secrets.token_hex(11)}"
        self._subscription = await self._broker.subscribe_raw(f"{self._inbox}.*", self._on_msg)
        self._outstanding = 0

    def _forget_requests(self) -> None:
        stale, self._subscription = self._subscription, None
        if stale is not None:
            # What has arrived is still ours to work on: dropped, it would cost an attempt.
            self._stale = asyncio.create_task(stale.drain(STALE_DRAIN_S))
        self._wake.set()

    async def _on_msg(self, msg: Msg) -> None:
        self._heard_at_s = now = self._time()
        reply = msg.reply
        if not reply:
            self._on_status(msg.headers or {})
            return
        self._outstanding = max(0, self._outstanding - 1)
        self._failures = 0
        tokens = reply.split(".")
        # After `$JS.ACK.`: [domain, account,] stream, consumer, deliveries, sequence, consumer's
        # sequence, time, pending. Source: NATS ADR-15; with the account it is version 2.
        first = 2 if len(tokens) == _TOKENS_V1 else 4
        self._deliver(
            Message(
                msg.subject,
                msg.data,
                msg.headers or NO_HEADERS,
                reply,
                tokens[first],
                int(tokens[first + 3]),
                int(tokens[first + 2]),
                int(tokens[first + 5]),
                now,
            )
        )
        if not self._outstanding:
            self.poke()  # Slots that were too few to be asked for beside what was on its way.

    def _on_status(self, headers: dict[str, str]) -> None:
        status = headers.get("Status", "")
        text = headers.get("Description", "").split("\n", 1)[0].strip()
        lowered = text.lower()
        if status == "100":
            return
        if status in {"404", "408"} or "batch completed" in lowered or "message size" in lowered:
            self._ended(headers)
        elif "exceeded maxrequestbatch" in lowered:
            self._max_request = int(text.rsplit(" ", 1)[-1])
            self._ended(headers, everything=True)
        elif status == "409" and ("leadership" in lowered or "shutdown" in lowered):
            self._ended(headers, everything=True)
            self._trouble = text
        else:
            # 400, 409 Consumer Deleted and its like, 423, 503: look at the consumer first.
            self._ended(headers, everything=True)
            self._trouble = f"{status} {text}".strip()
        self._wake.set()

    def _ended(self, headers: dict[str, str], *, everything: bool = False) -> None:
        unserved = headers.get("Nats-Pending-Messages", "")
        if everything or not unserved.isdigit():
            self._outstanding = 0
        else:
            self._outstanding = max(0, self._outstanding - int(unserved))

    def _check_heartbeat(self) -> None:
        if not self._outstanding:
            self._heard_at_s = self._time()
        elif self._time() - self._heard_at_s > HEARTBEAT_S * MISSED_HEARTBEATS:
            self._trouble = "heartbeats missing"

    async def _heal(self) -> None:
        """Look whether the consumer is there, make it again if not, then start over.

        Raises:
            Unavailable, ApiError: not healed; the caller waits and tries again.
        """
        reason = self._trouble
        try:
            await self._look()
        except ApiError as failure:
            if failure.code != 404:  # noqa: PLR2004 - HTTP's not found
                raise
            self._log.warning("Consumer is gone, making it again")
            await self._recreate()
            await self._look()
        if self._failures:
            await self._pause()
        self._failures += 1
        self._trouble = ""
        self._forget_requests()
        await self._open_inbox()
        self._heard_at_s = self._time()
        self._log.info("Pulling again", after=reason)

    async def _look(self) -> None:
        """Notice that the consumer is another than before: that connection may have missed it.

        Raises:
            Unavailable, ApiError: it is not there, or nobody says so.
        """
        found = await self._broker.api(f"CONSUMER.INFO.{self.stream}.{self.durable}")
        before, self._created = self._created, found["created"]
        if before and before != self._created:
            self._renewed()

    async def _back_off(self) -> None:
        self._failures += 1
        if self._failures == 1:
            self._log.warning("Pulling stopped, trying again", reason=self._trouble)
        self._ready.set()
        await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(min(BACKOFF_CAP_S, BACKOFF_FIRST_S * 2 ** min(self._failures, 10)))
