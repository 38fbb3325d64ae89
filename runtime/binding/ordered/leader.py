"""An ordered function: of all hosts that serve it one works at a time, the others stand by.

Whoever holds the function's lease pulls, and so knows of every message of a key which one is next.
What the host before it held and did not settle comes back first, and only then anything is called.
"""

import asyncio
import heapq
from typing import Any

from runtime.binding.consumer import ConsumerBinding, SharedServices
from runtime.binding.fair_queue import Awaited, FairQueue
from runtime.binding.ordered.crash_isolation import CrashIsolation
from runtime.binding.ordered.lease import Lease
from runtime.binding.ordered.remote_workers import RemoteWorkers
from runtime.binding.ordered.standby import Standby
from runtime.binding.puller_set import Source
from runtime.broker.clock import ServerClock
from runtime.broker.connection import ApiError
from runtime.broker.leases import LEASES, LeaseBook, LeaseRecord
from runtime.broker.puller import origin_of
from runtime.dispatch import Dispatcher
from runtime.errors import Unavailable
from runtime.message import Message
from runtime.observe.logs import get_logger
from runtime.observe.metrics import FunctionMetrics

log = get_logger("runtime.ordered")

LEAST_TTL_S = 5.0
DEPUTY_SHARE = 0.5
"""The share of a lease's time after which a silent leader's calls elsewhere are ended."""
GATHER_POLL_S = 0.1
CANCEL_AGAIN_S = 1.0
GIVE_UP_S = 2.0
"""How long a host that drains before it has begun waits for what is on its way to it."""
LOOK_S = 3.0
"""How often a leader sees whether the function is paused: before a message can be overdue."""
PAUSE_S = 1.0
LATE_S = 5.0
"""How long after its ack wait what another host held may still come back."""
MOST_AWAITED = 2000
"""Messages sent back that a successor is told of: those that are due last."""


class OrderedBinding:
    """Runs an ordered function on this host while it holds the function's lease."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        sources: list[Source],
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
        book = LeaseBook(shared.broker, self.name)
        self._ttl_s = max(LEAST_TTL_S, self._ack_wait_s)
        self._clock = ServerClock(shared.broker, LEASES)
        self._lease = Lease(book, self._ttl_s, self._state)
        self._crash_isolation = CrashIsolation(dispatcher, 0, self._lease.renew)
        self._due_at_s: dict[int, float] = {}
        self._work: ConsumerBinding | None = None
        self._standby: Standby | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_paused = False
        self._grace_s = 0.0
        self._may_begin = True
        self._left: dict[str, Any] = {}

    @property
    def is_flowing(self) -> bool:
        """Whether it does its work, or stands by."""
        if self._task is None or self._task.done():
            return False
        return self._work is None or self._work.is_flowing

    @property
    def leads(self) -> bool:
        """Whether this host is the one that works."""
        return self._work is not None

    async def start(self) -> None:
        """Stand by from now on, and work when it is this host's turn."""
        self._task = asyncio.create_task(self._run(), name=f"ordered {self.name}")

    async def drain(self, grace_s: float) -> None:
        """Finish what is here, then let another host go on at once."""
        self._grace_s = grace_s
        if self._work is not None:
            if not _fair_queue_of(self._work).is_open:
                # It was still gathering: nothing of what is here may be called.
                self._may_begin = False
                grace_s = min(grace_s, GIVE_UP_S)
            await self._work.drain(grace_s)
        # Before a standby has finished: it must not take the lease meanwhile.
        await self._end()
        await self._lease.give_back()

    async def stop(self) -> None:
        """End at once; whatever is here goes back to the stream."""
        await self._end()
        await self._lease.give_back()

    async def _end(self) -> None:
        if self._task is not None:
            await _cancel({self._task}, self._grace_s + CANCEL_AGAIN_S)

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
            if not leading.cancelled() and (failure := leading.exception()):
                log.error("Leading ended, which is a defect", function=self.name, exc_info=failure)
                await asyncio.sleep(PAUSE_S)
            await self._lease.give_back()
            log.warning("Another host may go on with an ordered function", function=self.name)

    async def _stand_by(self) -> LeaseRecord:
        """Return when it is this host's turn to lead; until then make calls for whoever does."""
        if self._dispatcher.function.shape == "event":
            ttl_s = self._ttl_s * DEPUTY_SHARE
            self._standby = Standby(self._dispatcher, self._shared.broker, ttl_s)
        try:
            if self._standby is not None:
                await self._standby.start()
            return await self._lease.take()
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
        """Work; returns when that is not possible."""
        state = record.state or {}
        self._crash_isolation = CrashIsolation(
            self._dispatcher,
            self._dispatcher.function.spec.retry.max_attempts,
            self._lease.renew,
            state.get("caution") if record.holder else None,
        )
        work = self._work = ConsumerBinding(
            self._dispatcher,
            self._sources,
            self._shared,
            self._metrics,
            runner=self._crash_isolation,
            before_return=self._before_return,
        )
        fair_queue = _fair_queue_of(work)
        fair_queue.is_open = False
        try:
            await self._expect(work, state)
            await work.start()
            await self._gather(work)
            if not self._may_begin:
                await asyncio.get_running_loop().create_future()  # The drain ends this task.
        except (ApiError, Unavailable) as failure:
            log.warning("An ordered function cannot begin", function=self.name, reason=str(failure))
            await asyncio.sleep(PAUSE_S)
            return
        if record.holder:
            self._crash_isolation.begin(fair_queue, _candidates(work))
            await self._lease.renew()
        work.buffer.open()
        if work.spill is not None:
            work.spill.open()
        log.info("Works on an ordered function", function=self.name)
        if self._dispatcher.function.shape == "event":
            backends, broker = self._shared.backends, self._shared.broker
            remote_workers = RemoteWorkers(
                work,
                self._dispatcher,
                self._crash_isolation,
                broker,
                backends.mailbox,
                lost_after_s=self._ttl_s,
            )
            await remote_workers.start()
        await self._watch(work)

    async def _watch(self, work: ConsumerBinding) -> None:
        """For ever: see whether what failed can come back."""
        while self._lease.is_held:
            await asyncio.sleep(LOOK_S)
            try:
                found = [await self._look_at(source) for source in self._sources]
            except (ApiError, Unavailable):
                found = [{"paused": True}]
            if any(each.get("paused") for each in found):
                work.buffer.suspend_deadlines()

    async def _look_at(self, source: Source) -> dict[str, Any]:
        subject = f"CONSUMER.INFO.{source.stream}.{source.durable}"
        return await self._shared.broker.api(subject)

    async def _expect(self, work: ConsumerBinding, state: dict[str, Any]) -> None:
        now_s = await self._now_s()
        for fair_key, order_key, sequence, due_at_s in state.get("awaited", []):
            self._due_at_s[sequence] = due_at_s
            awaited = Awaited(fair_key, order_key, sequence)
            work.buffer.expect_from_another(awaited, max(0.0, due_at_s - now_s))

    async def _gather(self, work: ConsumerBinding) -> None:
        """Return when all is here that the host before this one held."""
        time = asyncio.get_running_loop().time
        due_at_s = time() + self._ack_wait_s
        while True:
            now_s, is_due = await self._now_s(), time() > due_at_s
            if not await self._count_missing(work, now_s, make_room=is_due):
                break
            if self._is_paused:
                due_at_s = time() + self._ack_wait_s
            elif time() > due_at_s + LATE_S:
                log.warning("Not all came back that another host held", function=self.name)
                return
            await asyncio.sleep(GATHER_POLL_S)
        # Nothing is missing, so what should have come back by now was settled after all.
        fair_queue = _fair_queue_of(work)
        for each in fair_queue.awaited():
            if self._due_at_s.get(each.sequence, 0.0) <= now_s:
                fair_queue.stop_awaiting(each)

    async def _count_missing(self, work: ConsumerBinding, now_s: float, *, make_room: bool) -> int:
        """How many messages are not here that the host before this one may have held.

        With `make_room` there are places for them although others have taken all. The server
        delivers them before any other once their ack wait is over; earlier it would fill the
        places with others.
        """
        # Counted first: what arrives while the server is asked must not stand for what is missing.
        # And once each: one that was paused may send back what was delivered here since.
        here = len({origin_of(message.reply) for message in work.buffer.held})
        here += self._count_elsewhere(work, now_s)
        pending = unseen = 0
        self._is_paused = False
        if work.spill is not None:
            pending = await work.spill.ack_pending(make_room=make_room)
        for source in self._sources:
            found = await self._look_at(source)
            pending += found["num_ack_pending"]
            self._is_paused |= bool(found.get("paused"))
            if source.restore:
                # What was handed over or redriven is older than what the stream has.
                unseen = found["num_pending"]
        missing = max(0, pending - here)
        if make_room and missing:
            work.buffer.make_room(missing)
            work.pullers.poke()
        return missing + unseen

    async def _now_s(self) -> float:
        """JetStream's time, since 1970: that of this host may be wrong.

        Raises:
            ApiError, Unavailable: it does not tell.
        """
        return (await self._clock.now()).timestamp()

    def _count_elsewhere(self, work: ConsumerBinding, now_s: float) -> int:
        """Messages that were sent back, and whose time has not come."""
        awaited = _fair_queue_of(work).awaited()
        return sum(self._due_at_s.get(each.sequence, 0.0) > now_s for each in awaited)

    async def _before_return(self, message: Message, delay_s: float) -> None:
        """Have its key wait for it, here and, should this host die, on the next one."""
        work = self._work
        if work is not None:
            work.buffer.expect(message, delay_s)
            try:
                self._due_at_s[message.sequence] = await self._now_s() + delay_s
            except (ApiError, Unavailable):
                log.debug("A successor will not know when a message is due", function=self.name)
            await self._lease.renew()
            if not self._lease.is_held:
                # No successor would know how long to wait for it: it goes back with all the others.
                await asyncio.get_running_loop().create_future()

    def _state(self) -> dict[str, Any]:
        """What a successor must know."""
        if self._work is None:
            return self._left
        awaited = _fair_queue_of(self._work).awaited()
        due_at_s = {each.sequence: self._due_at_s.get(each.sequence, 0.0) for each in awaited}
        self._due_at_s = due_at_s
        if len(awaited) > MOST_AWAITED:
            # Those that are due soon come back while the successor gathers.
            awaited = heapq.nlargest(MOST_AWAITED, awaited, lambda each: due_at_s[each.sequence])
        return {
            "awaited": [
                [each.fair_key, each.order_key, each.sequence, due_at_s[each.sequence]]
                for each in awaited
            ],
            "caution": self._crash_isolation.state(),
        }


async def _cancel(tasks: set["asyncio.Task[None]"], again_after_s: float) -> None:
    """End tasks. The client library may swallow a cancellation that comes with an answer."""
    while tasks:
        for task in tasks:
            task.cancel()
        _, tasks = await asyncio.wait(tasks, timeout=again_after_s)


def _candidates(work: ConsumerBinding) -> list[Message]:
    """What a host that died may have been calling: nothing that is behind a failed message."""
    unlike = _fair_queue_of(work).blocked
    if work.spill is not None:
        unlike = unlike | work.spill.moving()
    return [each for each in work.buffer.held - unlike if each.attempt > 1]


def _fair_queue_of(work: ConsumerBinding) -> FairQueue:
    fair_queue = work.buffer.fair_queue
    if fair_queue is None:
        raise TypeError("an ordered function has a queue with keys")
    return fair_queue
