"""Binding of a function to a durable consumer: pull, admit, call, settle.

The `PullerSet` passes each delivered message through the stages of its function into the
`PrefetchBuffer`. A task of the `WorkerPool` takes it from the buffer, calls the function, and lets
`Settlement` act on the outcome.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from runtime.binding.buffer import Places, PrefetchBuffer
from runtime.binding.crash_isolation import SingleMessageStage
from runtime.binding.in_progress import Held, InProgressTicker
from runtime.binding.puller_set import DRAIN_S, PullerSet, Stage
from runtime.binding.settlement import MakeSettlement, Settlement, SettlementBackends
from runtime.binding.spill import Spill
from runtime.binding.worker import Runner, WorkerPool
from runtime.broker.connection import Broker
from runtime.broker.pull_source import PullSource
from runtime.broker.puller import Slots
from runtime.broker.recent_acks import RecentAcks
from runtime.broker.spill_queues import SLOTS, SpillQueues
from runtime.broker.stream_configs import MAILBOX
from runtime.dispatch import Dead, Dispatcher
from runtime.message import Message
from runtime.observe.logs import get_logger
from runtime.observe.metrics import FunctionMetrics
from runtime.queueing.capacity import bounds_of, queue_of
from runtime.resource.outage import Outages

log = get_logger("runtime.consumer")

MAILBOX_BYTE_SHARE = 8
SLOT_BYTE_SHARE = 64
"""Shares of a function's bytes, which open pull requests reserve."""


@dataclass(frozen=True, slots=True)
class SharedServices:
    """The services that all consumer bindings of a host share.

    Attributes:
        careful_ack_waits: for how many ack waits functions get single messages at first, because
            this process replaces one that died and any message may be the cause; 0 for none.
        peers: number of processes of this host, this one included, that run the same functions.
        settlement: builds a function's settlement.
    """

    broker: Broker
    backends: SettlementBackends
    ticker: InProgressTicker
    outages: Outages
    careful_ack_waits: int = 0
    peers: int = 1
    settlement: MakeSettlement = Settlement


class ConsumerBinding:
    """Runs one function over its consumer and its mailbox until drained.

    Args:
        dispatcher: the function's.
        sources: where its messages come from, its stream first.
        shared: the host's.
        metrics: the function's.
        runner: calls the function; the dispatcher unless given.

    Attributes:
        before_giving_back: awaited before unfinished messages are given back.
        stream_places: the places of the messages that the stream delivered.
        workers: the tasks that call the function.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        sources: list[PullSource],
        shared: SharedServices,
        metrics: FunctionMetrics,
        *,
        runner: Runner | None = None,
    ) -> None:
        function = dispatcher.function
        self.name = function.name
        self.metrics = metrics
        self.before_giving_back: Callable[[], Awaitable[None]] | None = None
        self.stream_places = Places()
        self._dispatcher = dispatcher
        self._sources = sources
        self._shared = shared
        self._queues = SpillQueues(shared.broker, self.name, function.spec)
        self._bounds = bounds_of(function)
        self._ack_wait_s = min(source.ack_wait_s for source in sources)
        self._recent_acks = RecentAcks()
        self.buffer = PrefetchBuffer(
            at_least=self._bounds.at_least,
            at_most=self._bounds.at_most,
            max_bytes=function.spec.byte_budget,
            queue=queue_of(function, shared.peers, asyncio.get_running_loop().time),
            wake_pullers=self._wake_pullers,
        )
        self.fair_queue = self.buffer.fair_queue
        self.pullers = PullerSet(
            shared.broker,
            self.buffer,
            renewed=self._recent_acks.forget_all,
            failed=self._on_failed_admission,
        )
        is_ordered = function.spec.ordered_by is not None
        retry_in_place = self.buffer.delay if is_ordered else None
        self._settlement = shared.settlement(dispatcher, shared.backends, metrics, retry_in_place)
        self.workers = WorkerPool(
            dispatcher,
            runner or dispatcher,
            self.buffer,
            self._settlement,
            self._recent_acks,
            outages=shared.outages,
            metrics=metrics,
            wake_pullers=self.pullers.wake,
        )
        self.spill = self._make_spill()
        self._held = Held(self.buffer.held, self._ack_wait_s)
        self._burials: set[asyncio.Task[bool]] = set()
        self._connect_pullers()

    @property
    def is_flowing(self) -> bool:
        """Whether all pull loops work."""
        return self.pullers.is_flowing

    async def start(self) -> None:
        """Start the pull loops and the workers."""
        self._shared.ticker.add(self._held)
        self.workers.start()
        if self.spill is not None:
            await self.spill.start()
        await self.pullers.start()

    async def drain(self, grace_s: float) -> None:
        """Stop pulling, finish the held messages, and give back those that outlast `grace_s`."""
        # However short the grace period: a sent message that is not taken in costs an attempt.
        await self.pullers.stop(DRAIN_S)
        await self._hand_over(self.buffer.finish())
        try:
            async with asyncio.timeout(grace_s):
                await self.buffer.wait_until_empty()
        except TimeoutError:
            log.warning(
                "Not finished in time, given back", function=self.name, messages=self.buffer.count()
            )
        await self._end_work()
        moving = self.spill.moving() if self.spill is not None else set()
        await self._hand_over([each for each in self.buffer.held if each not in moving])
        await self.stop()

    async def stop(self) -> None:
        """Stop at once; held messages go back to the stream."""
        await self.pullers.stop(0)
        await self._end_work()
        for message in self.buffer.held:
            self._settlement.give_back(message)
        self.buffer.clear()
        self._shared.ticker.remove(self._held)

    async def _hand_over(self, messages: list[Message]) -> None:
        remaining_s = self.buffer.remaining_s
        await asyncio.gather(
            *(self._settlement.hand_over(each, remaining_s(each)) for each in messages)
        )
        self.buffer.release_all(messages)

    async def _end_work(self) -> None:
        await self.workers.stop()
        await asyncio.gather(*self._burials, return_exceptions=True)
        if self.spill is not None:
            await self.spill.stop()
        if self.before_giving_back is not None:
            await self.before_giving_back()

    def _wake_pullers(self) -> None:
        self.pullers.wake()

    def _connect_pullers(self) -> None:
        """Create a pull loop for each source, with the stages that its messages pass."""
        stream, mailbox = self._sources
        isolation = self._make_isolation(max(stream.ack_wait_s, mailbox.ack_wait_s))
        stages: list[Stage | None] = [isolation, self.spill]
        buffer = self.buffer
        places, mailbox_places = self.stream_places, Places()
        of_stream_slots = Slots(
            buffer.stream_capacity,
            # When keys take turns, the mailbox's messages must not take all places from the
            # stream's.
            buffer.count if self.fair_queue is None else lambda: places.taken,
            buffer.free_bytes,
            buffer.max_bytes,
        )
        of_mailbox_slots = Slots(
            lambda: buffer.mailbox_capacity(mailbox_places.taken),
            lambda: mailbox_places.taken,
            buffer.mailbox_free_bytes,
            buffer.max_bytes // MAILBOX_BYTE_SHARE,
        )
        used = [stage for stage in stages if stage is not None]
        self.pullers.add(stream, places, of_stream_slots, used)
        self.pullers.add(mailbox, mailbox_places, of_mailbox_slots)
        if self.spill is not None:
            for slot in range(SLOTS):
                self._add_slot(slot, self.spill)

    def _add_slot(self, slot: int, spill: Spill) -> None:
        places = Places()
        source = PullSource(
            MAILBOX,
            self._queues.durable(slot),
            (),
            self._ack_wait_s,
            partial(self._queues.ensure, slot),
            self._shared.backends.mailbox.restore,
        )
        slots = Slots(
            partial(spill.capacity, slot),
            lambda: places.taken,
            lambda: min(spill.free_bytes(), self.buffer.blocked_free_bytes(places, SLOTS)),
            self.buffer.max_bytes // SLOT_BYTE_SHARE,
        )
        self.pullers.add(source, places, slots)

    def _make_spill(self) -> Spill | None:
        spec = self._dispatcher.function.spec
        if self.fair_queue is None:
            return None
        is_batch = self._dispatcher.function.shape == "batch"
        return Spill(
            self._queues,
            self.buffer,
            self.fair_queue,
            self._settlement,
            least=spec.batch.size if is_batch else spec.concurrency,
            wake_pullers=self.pullers.wake,
        )

    def _make_isolation(self, ack_wait_s: float) -> SingleMessageStage | None:
        if not self._shared.careful_ack_waits or self._dispatcher.function.spec.ordered_by:
            return None
        wait_s = self._shared.careful_ack_waits * ack_wait_s
        until_s = asyncio.get_running_loop().time() + wait_s
        return SingleMessageStage(self.name, self.buffer, self._bounds, until_s=until_s)

    def _on_failed_admission(self, message: Message, failure: Exception) -> None:
        log.error("A message could not be admitted", function=self.name, exc_info=failure)
        self.buffer.release(message)
        outcome = self._dispatcher.judge(message, failure, excuse=False)
        if not isinstance(outcome, Dead):
            self._settlement.refuse(message)
            return
        # On the last attempt no other code would report why the message is given up.
        burial = asyncio.create_task(self._settlement.settle(message, outcome), name="burial")
        self._burials.add(burial)
        burial.add_done_callback(self._burials.discard)
