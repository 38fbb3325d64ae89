"""Calls between hosts over core NATS: one host, the leader, requests calls from the others.

The leader announces itself on `_RUNTIME.{function}.leader` once a second. Each other host answers
on `_RUNTIME.{function}.standbys` with its id and the number of calls that it can make, and makes
the calls requested on `_RUNTIME.{function}.call.{id}`. A request on `cancel.{id}` is answered when
the calls have ended. Nothing is stored.
"""

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from runtime.broker.connection import Broker
from runtime.broker.subscription import Subscription
from runtime.call.call_task import create_call_task
from runtime.errors import RuntimeFault, Unavailable, Unsendable
from runtime.message import Message
from runtime.observe.logs import get_logger
from runtime.subjects import is_name
from runtime.supervised_task import SupervisedTask

log = get_logger("runtime.remote_calls")

LEADER = "Runtime-Leader"
"""Header of a call: the host that requests it."""
BEAT_S = 1.0
"""Interval of the leader's announcements."""
SILENT_S = 3.5
"""After this long without an answer a peer gets no more calls."""
DRAIN_S = 2.0
CANCEL_LIMIT_S = 2.0
MOST_PEERS = 1000
MOST_SLOTS = 10_000
"""Bounds of an announcement: a client that may publish on the subject can announce anything."""


class PeerLost(RuntimeFault):
    """A host was silent for so long that its call counts as failed."""


def subject_of(function: str, what: str) -> str:
    """A subject between the hosts of one function."""
    return f"_RUNTIME.{function}.{what}"


class CallServer:
    """Makes calls for the leader, until stopped.

    A call ends with its leader: a new leader gets the message again, so the call must not still
    run. When another leader announces itself, or none for `leader_ttl_s`, the calls are cancelled.

    Args:
        broker: the connection.
        function: name of the function.
        slots: how many calls it can make at a time.
        leader_ttl_s: shorter than the time after which another host may lead.
        make: makes a call and returns the answer.
        unfinished: the answer to a call that was cancelled or failed.
    """

    def __init__(
        self,
        broker: Broker,
        function: str,
        slots: int,
        leader_ttl_s: float,
        *,
        make: Callable[[Message], Awaitable[bytes]],
        unfinished: bytes,
    ) -> None:
        self._broker = broker
        self._function = function
        self._slots = slots
        self._leader_ttl_s = leader_ttl_s
        self._make = make
        self._unfinished = unfinished
        self._id = secrets.token_hex(8)
        self._calls: set[asyncio.Task[None]] = set()
        self._leader = ""
        self._silence: asyncio.TimerHandle | None = None
        self._requests: Subscription | None = None
        self._stack = AsyncExitStack()
        self._loop = asyncio.get_running_loop()

    async def start(self) -> None:
        """Subscribe to the leader's announcements and calls.

        Raises:
            Unavailable: the connection is closed.
        """
        await self._subscribe(f"cancel.{self._id}", self._on_cancel)
        self._requests = await self._subscribe(f"call.{self._id}", self._on_call)
        await self._subscribe("leader", self._on_leader)

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, finish the running ones within `grace_s`, or else give them back."""
        self._slots = 0
        await self._announce()
        # A later call fails at once, because there is no subscriber.
        if self._requests is not None:
            await self._requests.drain(DRAIN_S)
        if self._calls and grace_s > 0:
            await asyncio.wait(self._calls, timeout=grace_s)
        await self._cancel_calls()
        await self._stack.aclose()
        if self._silence is not None:
            self._silence.cancel()

    async def _subscribe(
        self, what: str, callback: Callable[[Message], Awaitable[None] | None]
    ) -> Subscription:
        subscription = await self._broker.subscribe(subject_of(self._function, what), callback)
        self._stack.push_async_callback(subscription.unsubscribe)
        return subscription

    async def _on_leader(self, message: Message) -> None:
        self._hear(message.data.decode(errors="replace"))
        await self._announce()

    def _hear(self, leader: str) -> None:
        if leader != self._leader:
            self._leader = leader
            self._end_calls("Another host leads, calls for the leader before are cancelled")
        if self._silence is not None:
            self._silence.cancel()
        silent = "The leader is silent, its calls are cancelled"
        self._silence = self._loop.call_later(self._leader_ttl_s, self._end_calls, silent)

    async def _announce(self) -> None:
        payload = json.dumps({"id": self._id, "slots": self._slots}).encode()
        try:
            await self._broker.publish_core(subject_of(self._function, "standbys"), payload)
        except Unavailable:
            log.debug("The standby's announcement was not sent", function=self._function)

    def _on_call(self, call: Message) -> None:
        self._hear(call.headers.get(LEADER, ""))
        task = create_call_task(self._make_and_answer(call), name=f"call {self._function}")
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _make_and_answer(self, call: Message) -> None:
        answer = self._unfinished
        try:
            answer = await self._make(call)
        finally:
            await self._answer(call, answer)

    async def _on_cancel(self, message: Message) -> None:
        if message.data.decode(errors="replace") == self._leader:
            await self._cancel_calls()
        await self._answer(message, b"")

    def _end_calls(self, reason: str) -> None:
        if self._calls:
            log.warning(reason, function=self._function)
        for call in self._calls:
            call.cancel()

    async def _cancel_calls(self) -> None:
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    async def _answer(self, message: Message, data: bytes) -> None:
        try:
            await self._broker.respond(message, data)
        except (Unavailable, Unsendable):
            log.debug("The answer to a call was not sent", function=self._function)


@dataclass(slots=True, eq=False)
class Peer:
    """A host that makes calls for the leader.

    Attributes:
        slots: how many calls it can make at a time; 0 when it gets no more.
        lost: done when its answers are no longer awaited.
    """

    id: str
    slots: int = 0
    heard_at_s: float = 0.0
    lost: "asyncio.Future[None]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class CallClient:
    """Finds the hosts that make calls for this leader, and requests calls from them.

    Args:
        broker: the connection.
        function: name of the function.
        lost_after_s: a host that was silent for this long has failed its calls.
        changed: called when a peer has another number of slots.
    """

    def __init__(
        self,
        broker: Broker,
        function: str,
        lost_after_s: float,
        changed: Callable[[Peer], None],
    ) -> None:
        self._broker = broker
        self._function = function
        self._lost_after_s = lost_after_s
        self._changed = changed
        self._id = secrets.token_hex(8)
        self._peers: dict[str, Peer] = {}
        self._subscription: Subscription | None = None
        self._beating = SupervisedTask(self._beat, f"leader {function}")
        self._time = asyncio.get_running_loop().time

    async def start(self) -> None:
        """Subscribe to the peers' answers, and announce this leader.

        Raises:
            Unavailable: the connection is closed.
        """
        subject = subject_of(self._function, "standbys")
        self._subscription = await self._broker.subscribe(subject, self._on_announcement)
        self._beating.start()

    async def stop(self) -> None:
        """Find no more peers, and cancel the calls that still run."""
        await self._beating.stop()
        if self._subscription is not None:
            await self._subscription.unsubscribe()
            self._subscription = None
        await asyncio.gather(*(self._cancel(peer) for peer in self._peers.values()))
        self._peers.clear()

    async def call(
        self, peer: Peer, data: bytes, headers: Mapping[str, str], *, timeout_s: float
    ) -> bytes:
        """Request a call, and return the answer.

        Raises:
            NoAnswer: the peer is gone, or did not answer in time.
            PeerLost: the peer is silent.
            Unavailable, Unsendable: the request was not sent.
        """
        request = asyncio.create_task(
            self._broker.request(
                subject_of(self._function, f"call.{peer.id}"),
                data,
                timeout_s=timeout_s,
                headers={**headers, LEADER: self._id},
            )
        )
        try:
            await asyncio.wait((request, peer.lost), return_when=asyncio.FIRST_COMPLETED)
            if not request.done():
                log.warning("A host that made a call is silent", function=self._function)
                raise PeerLost("the host that ran it is silent")
            return request.result().data
        finally:
            request.cancel()

    async def _beat(self) -> None:
        while True:
            try:
                subject = subject_of(self._function, "leader")
                await self._broker.publish_core(subject, self._id.encode())
            except Unavailable:
                log.debug("The leader's announcement was not sent", function=self._function)
            await asyncio.sleep(BEAT_S)
            for peer in list(self._peers.values()):
                self._look_at(peer)

    def _look_at(self, peer: Peer) -> None:
        silent_s = self._time() - peer.heard_at_s
        if silent_s > SILENT_S:
            self._set_slots(peer, 0)
        if silent_s > self._lost_after_s:
            peer.lost.set_result(None)
            del self._peers[peer.id]

    def _on_announcement(self, message: Message) -> None:
        standby, slots = _read_announcement(message.data)
        peer = self._peers.get(standby)
        if peer is None:
            if not slots or len(self._peers) >= MOST_PEERS:
                return
            peer = self._peers[standby] = Peer(standby)
            log.debug("Another host makes calls of a function", function=self._function)
        peer.heard_at_s = self._time()
        self._set_slots(peer, slots)

    def _set_slots(self, peer: Peer, slots: int) -> None:
        if slots != peer.slots:
            peer.slots = slots
            self._changed(peer)

    async def _cancel(self, peer: Peer) -> None:
        subject = subject_of(self._function, f"cancel.{peer.id}")
        try:
            await self._broker.request(subject, self._id.encode(), timeout_s=CANCEL_LIMIT_S)
        except Unavailable:
            log.debug("A peer does not answer, it will cancel its calls by itself")


def _read_announcement(data: bytes) -> tuple[str, int]:
    """A host's id and its number of concurrent calls; 0 calls for an invalid announcement."""
    try:
        said = json.loads(data)
        standby, slots = str(said["id"]), int(said["slots"])
    except (ValueError, KeyError, TypeError):
        return "", 0
    # The id becomes part of a subject.
    return (standby, min(slots, MOST_SLOTS)) if is_name(standby) and slots >= 0 else ("", 0)
