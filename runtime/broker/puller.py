"""Continuous pull loop of one durable consumer.

Pull requests overlap, and their size follows the free places and free bytes of the buffer. So
nothing is fetched without a free place, and a slow message does not hold the next request back.
Source: NATS ADR-37 (JetStream simplification, `consume`) and ADR-13 (pull requests and their status
codes).
"""

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from runtime.broker.ack_subject import set_origin
from runtime.broker.connection import ApiError, Broker
from runtime.broker.pull_limits import PullLimits
from runtime.broker.subscription import Subscription
from runtime.errors import Unavailable
from runtime.message import Message
from runtime.observe.logs import get_logger
from runtime.subjects import HOST_INBOX
from runtime.supervised_task import SupervisedTask

log = get_logger("runtime.puller")

EXPIRES_S = 30.0
HEARTBEAT_S = 5.0
MISSED_HEARTBEATS = 2.5
BACKOFF_FIRST_S = 0.2
BACKOFF_CAP_S = 10.0
STALE_DRAIN_S = 5.0
MOST_REQUESTS = 4
"""Pull requests that are open at a time; each asks for at least a quarter of the capacity."""
LEAST_REQUEST_BYTES = 64 * 1024
GROWTH = 1.25
"""Factor by which the byte limit grows after a request that was too small for the next message."""
_NS = 1_000_000_000
_FRAME_BYTES = 256
"""Upper bound of what the server counts for a message besides its payload and headers."""


@dataclass(frozen=True, slots=True)
class Slots:
    """The room that pull requests may use, read before each request.

    Attributes:
        capacity: the most messages that may be held at once, at this moment.
        held: how many unsettled messages are held now.
        free_bytes: how many more bytes may be fetched.
        request_bytes: the most that requests reserve, unless a message is known to need more.
    """

    capacity: Callable[[], int]
    held: Callable[[], int]
    free_bytes: Callable[[], int]
    request_bytes: int


@dataclass(slots=True, eq=False)
class _Request:
    """A subscription on which at most one pull request is open at a time.

    The server serves open requests in turn, and does not say when a request is complete. With a
    subscription for each request, the messages and bytes that may still arrive are known.

    Attributes:
        subject: prefix of the subjects on which its messages are sent.
        subscription: to `{subject}.*`; None until subscribed.
        number: number of the last request, the last token of its subject.
        messages: how many messages may still arrive; 0 when no request is open.
        size_bytes: how many bytes may still arrive.
        is_forgotten: whether the loop has opened a new inbox since.
    """

    subject: str
    subscription: Subscription | None = None
    number: int = 0
    messages: int = 0
    size_bytes: int = 0
    is_forgotten: bool = False


class Puller:
    """Pulls from a durable consumer and calls `deliver` for each message, until `stop`.

    The loop recovers by itself: after a lost connection, a missing heartbeat, a leadership change
    or a deleted consumer it sends new requests; a deleted consumer is first created anew with
    `recreate`. `deliver` is called on the event loop, in the order in which the server sent the
    messages, and must not block. `renewed` is called when the consumer was deleted and created
    anew, by this host or another.

    Requests ask for no more bytes than there is room for, with one exception: a message that is
    larger than the room is fetched alone, when no other message is held.
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
        self._open = 0
        self._outstanding = 0
        self._outstanding_bytes = 0
        self._limits = PullLimits()
        self._usual_bytes = _FRAME_BYTES
        self._refused_bytes = 0
        self._inbox = ""
        self._requests: list[_Request] = []
        self._draining: set[asyncio.Task[None]] = set()
        self._task = SupervisedTask(
            self._run, f"pull {stream}/{durable}", on_failure=self._forget_requests
        )
        self._wake = asyncio.Event()
        self._ready = asyncio.Event()
        self._trouble = ""
        self._failures = 0
        self._heard_at_s = 0.0
        self._stack = ExitStack()
        self._time = asyncio.get_running_loop().time

    @property
    def outstanding(self) -> int:
        """Messages that were requested and have not arrived."""
        return self._outstanding

    @property
    def outstanding_bytes(self) -> int:
        """The most bytes that the outstanding messages may have."""
        return self._outstanding_bytes

    @property
    def is_flowing(self) -> bool:
        """Whether the server was heard within the heartbeat bound and no recovery is under way."""
        quiet_s = self._time() - self._heard_at_s
        is_heard = not self._trouble and quiet_s < HEARTBEAT_S * MISSED_HEARTBEATS * 2
        return is_heard and self._task.is_flowing

    @property
    def is_stopped(self) -> bool:
        """Whether `deliver` will not be called again."""
        return not self._requests and self._task.has_ended

    async def start(self) -> None:
        """Start the loop; return after its first attempt to send a request."""
        self._stack.callback(self._broker.on_reconnect(self._forget_requests))
        self._task.start()
        await self._ready.wait()

    def wake(self) -> None:
        """Wake the loop if the free places suffice for another request."""
        if not self._wake.is_set() and self._next_request() is not None:
            self._wake.set()

    async def stop(self, timeout_s: float) -> None:
        """Stop pulling; messages that the server has sent are delivered before this returns.

        With a timeout of 0 they are dropped, and redelivered by the server.
        """
        self._stack.close()
        await self._task.stop()
        self._ready.set()  # `start` need not wait any more.
        if timeout_s > 0:
            await _drain_all(self._requests, timeout_s)
        else:
            for request in self._requests:
                if request.subscription is not None:
                    await request.subscription.unsubscribe()
            for task in self._draining:
                task.cancel()
        self._requests = []
        await asyncio.gather(*self._draining, return_exceptions=True)

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
        if not self._inbox:
            await self._look_at_consumer()
            self._open_inbox()
        # Cleared before the check: a place that is freed while the request is being sent counts.
        self._wake.clear()
        # A request sent while the connection is down would reach the server after the reconnect,
        # with an inbox that has been replaced by then.
        if self._broker.is_connected and (wanted := self._next_request()) is not None:
            await self._request(*wanted)
        self._ready.set()
        try:
            # Not `wait_for`: before Python 3.12 it swallows a cancellation that comes at the same
            # moment as the awaited result, and `stop` would wait for ever.
            async with asyncio.timeout(HEARTBEAT_S):
                await self._wake.wait()
        except TimeoutError:
            self._check_heartbeat()

    def _next_request(self) -> tuple[int, int] | None:
        """How many messages and bytes to request now; 0 bytes means one message of any size.

        None until a quarter of the capacity is free, or nothing is due.
        """
        slots = self._slots
        capacity = slots.capacity()
        held = slots.held() + self._outstanding
        free = capacity - held
        if free <= 0 or (self._outstanding and free < capacity // 4):
            return None
        usual_bytes, refused_bytes = self._usual_bytes, self._refused_bytes
        free_bytes = self._limits.size_bytes(slots.free_bytes() - self._outstanding_bytes)
        if free_bytes <= 0 or self._open == MOST_REQUESTS:
            return None
        # The next message is larger than the refused request.
        if free_bytes < max(usual_bytes, refused_bytes * GROWTH):
            if held:
                return None
            if refused_bytes:
                return 1, 0
        if refused_bytes:
            size_bytes = min(free_bytes, max(slots.request_bytes, 2 * refused_bytes))
        else:
            most_bytes = max(slots.request_bytes, 2 * usual_bytes)
            size_bytes = min(free_bytes, most_bytes - self._outstanding_bytes)
        if size_bytes <= 0:
            return None
        size = self._limits.messages(min(free, max(1, size_bytes // usual_bytes)))
        if not refused_bytes:
            # Bytes that a request reserves and does not use are missing for the next request, so a
            # request reserves only twice the usual size of its messages.
            size_bytes = min(size_bytes, max(LEAST_REQUEST_BYTES, 2 * size * usual_bytes))
        return size, size_bytes

    async def _request(self, messages: int, size_bytes: int) -> None:
        request = await self._closed_request()
        if not self._outstanding:
            self._heard_at_s = self._time()
        request.number += 1
        request.messages, request.size_bytes = messages, size_bytes
        self._open += 1
        self._outstanding += messages
        self._outstanding_bytes += size_bytes
        expires_s = self._limits.expires_s(EXPIRES_S)
        body = {
            "batch": messages,
            "expires": int(expires_s * _NS),
            # At most half the time of the request. Source: NATS ADR-13.
            "idle_heartbeat": int(min(HEARTBEAT_S, expires_s / 2) * _NS),
        }
        if size_bytes:
            body["max_bytes"] = size_bytes
        await self._broker.send(
            f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{self.durable}",
            json.dumps(body).encode(),
            f"{request.subject}.{request.number}",
        )

    async def _closed_request(self) -> _Request:
        for request in self._requests:
            if not request.messages:
                return request
        request = _Request(f"{self._inbox}.{len(self._requests)}")
        # A plain callback is called as messages arrive, so the messages of all requests keep the
        # order in which the server sent them.
        request.subscription = await self._broker.subscribe(
            f"{request.subject}.*", partial(self._on_message, request)
        )
        self._requests.append(request)
        return request

    def _open_inbox(self) -> None:
        """Open a new inbox: requests from before a reconnect may still be open on the server."""
        self._inbox = f"{HOST_INBOX}.{secrets.token_hex(11)}"

    def _forget_requests(self) -> None:
        stale, self._requests = self._requests, []
        for request in stale:
            request.is_forgotten = True
            request.messages = request.size_bytes = 0
        self._inbox = ""
        self._open = self._outstanding = self._outstanding_bytes = 0
        if stale:
            # Messages that have arrived are still worked on: dropping one would cost an attempt.
            task = asyncio.create_task(_drain_all(stale, STALE_DRAIN_S))
            self._draining.add(task)
            task.add_done_callback(self._draining.discard)
        self._wake.set()

    def _on_message(self, request: _Request, message: Message) -> None:
        self._heard_at_s = now = self._time()
        reply = message.reply
        if not reply:
            # A status has the subject of its request, which may be complete by our own count.
            is_current = message.subject == f"{request.subject}.{request.number}"
            if is_current and not request.is_forgotten:
                self._on_status(request, message.headers)
            return
        headers = message.headers
        size_bytes = len(message.data) + _FRAME_BYTES
        if headers:
            size_bytes += sum(map(len, headers)) + sum(map(len, headers.values()))
        if not request.is_forgotten:
            # Inline and not in a method of its own: this runs for each message.
            self._usual_bytes += (size_bytes - self._usual_bytes) >> 3
            self._refused_bytes = self._failures = 0
            if request.messages > 1:
                request.messages -= 1
                self._outstanding -= 1
                used_bytes = size_bytes if size_bytes < request.size_bytes else request.size_bytes
                request.size_bytes -= used_bytes
                self._outstanding_bytes -= used_bytes
            else:
                self._close(request)
        set_origin(message)
        message.received_at_s = now
        message.size_bytes = size_bytes
        self._deliver(message)
        if not request.messages:
            self.wake()  # The free places may now suffice for another request.

    def _close(self, request: _Request) -> None:
        """Mark the request as ended: no more messages will arrive for it."""
        if request.messages:
            self._open -= 1
            self._outstanding -= request.messages
            self._outstanding_bytes -= request.size_bytes
            request.messages = request.size_bytes = 0

    def _on_status(self, request: _Request, headers: Mapping[str, str]) -> None:
        status = headers.get("Status", "")
        text = headers.get("Description", "").split("\n", 1)[0].strip()
        lowered = text.lower()
        if status == "100":
            return
        refused_bytes = request.size_bytes
        self._close(request)
        if "message size" in lowered:
            # Several requests may be refused because of one message.
            self._refused_bytes = max(1, refused_bytes, self._refused_bytes)
        elif status in {"404", "408"} or "batch completed" in lowered or self._limits.learn(text):
            pass  # A normal end, or a limit that later requests respect.
        else:
            # 409 Leadership Change, Server Shutdown, Consumer Deleted and similar, 400, 423, 503:
            # check the consumer first.
            self._trouble = f"{status} {text}".strip()
        self._wake.set()

    def _check_heartbeat(self) -> None:
        if not self._outstanding:
            self._heard_at_s = self._time()
        elif self._time() - self._heard_at_s > HEARTBEAT_S * MISSED_HEARTBEATS:
            self._trouble = "heartbeats missing"

    async def _heal(self) -> None:
        """Check that the consumer exists, create it if not, then open new requests.

        Raises:
            Unavailable, ApiError: not recovered; the caller waits and tries again.
        """
        reason = self._trouble
        try:
            await self._look_at_consumer()
        except ApiError as failure:
            if failure.code != 404:  # noqa: PLR2004 - HTTP's not found
                raise
            self._log.warning("Consumer is gone, creating it again")
            await self._recreate()
            await self._look_at_consumer()
        if self._failures:
            await self._pause()
        self._failures += 1
        self._trouble = ""
        self._forget_requests()
        self._open_inbox()
        self._heard_at_s = self._time()
        self._log.info("Pulling again", after=reason)

    async def _look_at_consumer(self) -> None:
        """Detect a consumer that was created anew while the connection was lost.

        Raises:
            Unavailable, ApiError: the consumer does not exist, or JetStream does not answer.
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


async def _drain_all(requests: Iterable[_Request], timeout_s: float) -> None:
    """End subscriptions after the messages that the server has sent were delivered."""
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    for request in list(requests):
        left_s = deadline_s - asyncio.get_running_loop().time()
        if request.subscription is not None:
            await request.subscription.drain(max(0.01, left_s))
