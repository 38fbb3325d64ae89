"""Binding of an ordered function: one host leads by a lease, the others are standbys.

Only the leader, the holder of the function's lease, pulls, so it knows which message of a key is
next. The unsettled messages of the leader before are redelivered first; only then the first call is
made.
"""

import asyncio
import contextlib
from typing import Any

from runtime.binding.consumer import ConsumerBinding, SharedServices
from runtime.binding.crash_isolation import CrashIsolation
from runtime.binding.ordered.remote_call import standby
from runtime.binding.ordered.remote_workers import RemoteWorkers
from runtime.broker.ack_subject import origin_of
from runtime.broker.connection import ApiError
from runtime.broker.leases import Lease, LeaseBook, LeaseRecord
from runtime.broker.pull_source import PullSource
from runtime.broker.remote_calls import CallServer
from runtime.dispatch import Dispatcher
from runtime.errors import Unavailable
from runtime.message import Message
from runtime.observe.logs import get_logger
from runtime.observe.metrics import FunctionMetrics
from runtime.queueing.fair_queue import FairQueue
from runtime.supervised_task import SupervisedTask

log = get_logger("runtime.ordered")

LEAST_TTL_S = 5.0
STANDBY_SHARE = 0.5
"""Share of a lease's time to live after which standbys cancel the calls of a silent leader."""
GATHER_POLL_S = 0.1
CANCEL_AGAIN_S = 1.0
GIVE_UP_S = 2.0
"""How long a host that drains before its first call waits for messages that were sent to it."""
PAUSE_S = 1.0
LATE_S = 5.0
"""How long after the ack wait another host's messages may still be redelivered."""


class OrderedBinding:
    """Runs an ordered function on this host while it holds the function's lease."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        sources: list[PullSource],
        shared: SharedServices,
        metrics: FunctionMetrics,
    ) -> None:
        self.name = dispatcher.function.name
        self._dispatcher = dispatcher
        self._sources = sources
        self._shared = shared
        self._metrics = metrics
        self._ack_wait_s = max(source.ack_wait_s for source in sources)
        # A successor waits for the ack wait in any case, so a shorter lease would gain nothing.
        self._ttl_s = max(LEAST_TTL_S, self._ack_wait_s)
        self._lease = Lease(LeaseBook(shared.broker, self.name), self._ttl_s, self._state)
        self._isolation = self._make_isolation(None)
        self._work: ConsumerBinding | None = None
        self._standby: CallServer | None = None
        self._has_waited = False
        self._task = SupervisedTask(self._run, f"ordered {self.name}")
        self._is_paused = False
        self._grace_s = 0.0
        self._may_begin = True
        self._left: dict[str, Any] = {}

    @property
    def is_flowing(self) -> bool:
        """Whether the host leads and works, or is a standby."""
        return self._task.is_flowing and (self._work is None or self._work.is_flowing)

    @property
    def leads(self) -> bool:
        """Whether this host is the leader."""
        return self._work is not None

    async def start(self) -> None:
        """Become a standby, and the leader when the lease is free."""
        self._task.start()

    async def drain(self, grace_s: float) -> None:
        """Finish the held messages, then give the lease back."""
        self._grace_s = grace_s
        if self._work is not None:
            if not _fair_queue_of(self._work).is_open:
                # It was still gathering: no held message may be called.
                self._may_begin = False
                grace_s = min(grace_s, GIVE_UP_S)
            await self._work.drain(grace_s)
        # Before the standby has finished: it must not take the lease meanwhile.
        await self.stop()

    async def stop(self) -> None:
        """Stop at once; held messages go back to the stream."""
        is_ended = False
        while not is_ended:
            # The client library may swallow a cancellation that comes with an answer.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._grace_s + CANCEL_AGAIN_S):
                    await self._task.stop()
                is_ended = True
        await self._lease.give_back()

    async def _run(self) -> None:
        while True:
            record = await self._stand_by()
            keeping = asyncio.create_task(self._lease.keep(), name=f"lease {self.name}")
            leading = asyncio.create_task(self._lead(record), name=f"lead {self.name}")
            try:
                await asyncio.wait({keeping, leading}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await _cancel({keeping, leading}, CANCEL_AGAIN_S)
                await self._stop_work()
            for task in (leading, keeping):
                if not task.cancelled() and (failure := task.exception()):
                    sentence = "Leading failed, another host may"
                    log.error(sentence, function=self.name, exc_info=failure)
                    await asyncio.sleep(PAUSE_S)
            await self._lease.give_back()
            log.warning("Another host may go on with an ordered function", function=self.name)

    async def _stand_by(self) -> LeaseRecord:
        """Be a standby, which makes calls for the leader, until this host has the lease."""
        if self._dispatcher.function.shape == "event":
            ttl_s = self._ttl_s * STANDBY_SHARE
            self._standby = standby(self._dispatcher, self._shared.broker, ttl_s)
        try:
            if self._standby is not None:
                await self._standby.start()
            began_s = asyncio.get_running_loop().time()
            record = await self._lease.take()
            self._has_waited = asyncio.get_running_loop().time() - began_s > self._ttl_s / 2
            return record
        finally:
            if self._standby is not None:
                await self._standby.stop(self._grace_s)
                self._standby = None

    async def _stop_work(self) -> None:
        self._left = self._state()
        work, self._work = self._work, None
        if work is not None:
            await work.stop()

    async def _lead(self, record: LeaseRecord) -> None:
        """Work until the lease is lost; return earlier when the work cannot begin."""
        is_after_death = bool(record.holder)
        self._isolation = self._make_isolation(record.state if is_after_death else None)
        work = self._work = ConsumerBinding(
            self._dispatcher, self._sources, self._shared, self._metrics, runner=self._isolation
        )
        queue = _fair_queue_of(work)
        queue.is_open = False
        try:
            await work.start()
            await self._gather(work)
        except (ApiError, Unavailable) as failure:
            log.warning("An ordered function cannot begin", function=self.name, reason=str(failure))
            await asyncio.sleep(PAUSE_S)
            return
        if not self._may_begin:
            await asyncio.get_running_loop().create_future()  # The drain ends this task.
        if is_after_death:
            self._isolation.begin(queue, _may_have_been_called(work))
            await self._lease.renew()
        work.buffer.open()
        if work.spill is not None:
            work.spill.open()
        # That the only host works is expected, and said by its start.
        tell = log.info if is_after_death or self._has_waited else log.debug
        tell("Works on an ordered function", function=self.name)
        if self._dispatcher.function.shape == "event":
            remote = RemoteWorkers(
                work, self._dispatcher, self._isolation, self._shared, lost_after_s=self._ttl_s
            )
            await remote.start()
        await self._lease.wait_until_lost()

    def _make_isolation(self, state: dict[str, Any] | None) -> CrashIsolation:
        max_deaths = self._dispatcher.function.spec.retry.max_attempts
        left = state.get("isolation") if state else None
        return CrashIsolation(self._dispatcher, max_deaths, self._lease.renew, left)

    async def _gather(self, work: ConsumerBinding) -> None:
        """Return when all messages that the leader before held have arrived."""
        time = asyncio.get_running_loop().time
        due_at_s = time() + self._ack_wait_s
        while await self._count_missing(work, make_room=time() > due_at_s):
            if self._is_paused:
                due_at_s = time() + self._ack_wait_s
            elif time() > due_at_s + LATE_S:
                log.warning(
                    "Not all messages of the host before were redelivered", function=self.name
                )
                return
            await asyncio.sleep(GATHER_POLL_S)

    async def _count_missing(self, work: ConsumerBinding, *, make_room: bool) -> int:
        """The number of messages that the leader before may have held and that are missing.

        With `make_room`, places are reserved for them even when others have taken all. The server
        delivers them first once their ack wait is over; earlier it would fill the places with
        others.
        """
        # Counted first: messages that arrive during the request must not count as missing ones. And
        # each once: a host that was paused may send back messages that were delivered here since.
        here = len({origin_of(message.reply) for message in work.buffer.held})
        pending = unseen = 0
        self._is_paused = False
        if work.spill is not None:
            pending = await work.spill.ack_pending(make_room=make_room)
        for source in self._sources:
            subject = f"CONSUMER.INFO.{source.stream}.{source.durable}"
            found = await self._shared.broker.api(subject)
            pending += found["num_ack_pending"]
            self._is_paused |= bool(found.get("paused"))
            if source.restore:
                # Handed over and redriven messages are older than those in the stream.
                unseen = found["num_pending"]
        missing = max(0, pending - here)
        if make_room and missing + unseen:
            work.buffer.make_room(missing, work.stream_places.taken)
            work.pullers.wake()
        return missing + unseen

    def _state(self) -> dict[str, Any]:
        """The data for a successor."""
        return self._left if self._work is None else {"isolation": self._isolation.state()}


async def _cancel(tasks: set["asyncio.Task[None]"], again_after_s: float) -> None:
    """Cancel tasks repeatedly: the client library may swallow a cancellation."""
    while tasks:
        for task in tasks:
            task.cancel()
        _, tasks = await asyncio.wait(tasks, timeout=again_after_s)


def _may_have_been_called(work: ConsumerBinding) -> list[Message]:
    """The messages that a dead host may have been calling, without those it was spilling."""
    moving = work.spill.moving() if work.spill is not None else set()
    return [each for each in work.buffer.held if each.attempt > 1 and each not in moving]


def _fair_queue_of(work: ConsumerBinding) -> FairQueue:
    if work.fair_queue is None:
        raise TypeError("an ordered function has a queue with keys")
    return work.fair_queue
