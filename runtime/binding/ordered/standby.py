"""Standby of an ordered function: makes the calls that the leader requests."""

import asyncio
import json
import secrets
from contextlib import AsyncExitStack

from runtime.binding.ordered.remote_call import LEADER, UNFINISHED, called_message, encode_outcome
from runtime.broker.connection import Broker
from runtime.broker.subscription import Subscription
from runtime.call_task import create_call_task
from runtime.dispatch import Dispatcher
from runtime.errors import Unavailable, Unsendable
from runtime.message import Message
from runtime.observe.logs import get_logger
from runtime.supervised_task import SupervisedTask

log = get_logger("runtime.standby")

BEAT_S = 1.0
"""Interval of the announcements of standbys and leader."""

DRAIN_S = 2.0


def subject_of(function: str, what: str) -> str:
    """A subject between the hosts of one function; core NATS, so nothing is stored."""
    return f"_RUNTIME.{function}.{what}"


class Standby:
    """Makes calls for the leader, at most the function's concurrency at a time.

    A call ends with its leader: a new leader gets the message again, so the call must not still
    run. When a leader was not heard for `leader_ttl_s`, its calls are cancelled.

    Args:
        dispatcher: the function's.
        broker: the connection.
        leader_ttl_s: shorter than the time after which another host may lead.
    """

    def __init__(self, dispatcher: Dispatcher, broker: Broker, leader_ttl_s: float) -> None:
        self._dispatcher = dispatcher
        self._broker = broker
        self._leader_ttl_s = leader_ttl_s
        self._function = dispatcher.function.name
        self._id = secrets.token_hex(8)
        self._slots = dispatcher.function.spec.concurrency
        self._calls: dict[asyncio.Task[None], str] = {}
        self._heard_at_s: dict[str, float] = {}
        self._stack = AsyncExitStack()
        self._asked: Subscription | None = None
        self._beating: SupervisedTask | None = None
        self._time = asyncio.get_running_loop().time

    async def start(self) -> None:
        """Subscribe to calls, and announce this standby.

        Raises:
            Unavailable: the connection is closed.
        """
        for what, callback in (
            (f"cancel.{self._id}", self._on_cancel),
            ("leader", self._on_leader),
        ):
            subject = subject_of(self._function, what)
            subscription = await self._broker.subscribe(subject, callback)
            self._stack.push_async_callback(subscription.unsubscribe)
        subject = subject_of(self._function, f"call.{self._id}")
        self._asked = await self._broker.subscribe(subject, self._on_call)
        self._beating = SupervisedTask(self._beat, f"standby {self._function}").start()

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, finish the running ones within `grace_s`, or else give them back."""
        if self._beating is None:
            return
        await self._beating.stop()
        self._beating = None
        await self._announce(0)
        # A later call fails at once, because there is no subscriber.
        if self._asked is not None:
            await self._asked.drain(DRAIN_S)
        if self._calls and grace_s > 0:
            await asyncio.wait(self._calls, timeout=grace_s)
        await self._cancel(list(self._calls))
        await self._stack.aclose()

    async def _beat(self) -> None:
        while True:
            await self._announce(self._slots)
            await asyncio.sleep(BEAT_S)
            silent_s = self._time() - self._leader_ttl_s
            lost = [
                call for call, leader in self._calls.items() if self._heard_at_s[leader] < silent_s
            ]
            if lost:
                log.warning(
                    "The leader is silent, its calls are cancelled", function=self._function
                )
                await self._cancel(lost)

    async def _announce(self, slots: int) -> None:
        payload = json.dumps({"id": self._id, "slots": slots}).encode()
        try:
            await self._broker.publish_core(subject_of(self._function, "standbys"), payload)
        except Unavailable:
            log.debug("The standby's announcement was not sent", function=self._function)

    def _on_leader(self, message: Message) -> None:
        self._heard_at_s = {leader: self._heard_at_s[leader] for leader in self._calls.values()}
        self._heard_at_s[message.data.decode()] = self._time()

    def _on_call(self, call: Message) -> None:
        leader = call.headers.get(LEADER, "")
        self._heard_at_s[leader] = self._time()
        task = create_call_task(self._make(call), name=f"call {self._function}")
        self._calls[task] = leader
        task.add_done_callback(lambda ended: self._calls.pop(ended, None))

    async def _make(self, call: Message) -> None:
        answer = UNFINISHED
        try:
            message = called_message(call)
            if message is not None:
                answer = encode_outcome(await self._dispatcher.run_event(message))
        finally:
            await self._answer(call, answer)

    async def _on_cancel(self, message: Message) -> None:
        leader = message.data.decode()
        await self._cancel([call for call, of in self._calls.items() if of == leader])
        await self._answer(message, b"")

    async def _cancel(self, calls: list["asyncio.Task[None]"]) -> None:
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    async def _answer(self, message: Message, data: bytes) -> None:
        try:
            await self._broker.respond(message, data)
        except (Unavailable, Unsendable):
            log.debug("The answer to a call was not sent", function=self._function)
