"""A function bound to a durable consumer: pull, call, settle."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from runtime.binding.buffer import PrefetchBuffer
from runtime.binding.capacity import bounds_of, fair_queue_of
from runtime.binding.in_progress import Held, InProgressTicker
from runtime.binding.outages import Outages
from runtime.binding.puller_set import DRAIN_S, PullerSet, Source
from runtime.binding.rate_limiter import RateLimiter
from runtime.binding.recent_acks import RecentAcks
from runtime.binding.settlement import BeforeReturn, Settlement, SettlementBackends
from runtime.binding.spill import Spill
from runtime.binding.token_bucket import TokenBucket, token_bucket_of
from runtime.binding.worker import Runner, Worker
from runtime.broker.connection import Broker
from runtime.broker.puller import Origin, origin_of
from runtime.broker.spill_queues import SpillQueues
from runtime.call_task import create_call_task
from runtime.dispatch import DONE, Dispatcher, Later, Outcome
from runtime.message import Message
from runtime.observe.logs import get_logger
from runtime.observe.metrics import FunctionMetrics

log = get_logger("runtime.consumer")

FALSE_OUTAGE_PAUSES_S = (0.2, 0.5, 1.0)
"""Before a call is made again that spoke of an outage which no probe saw."""
TURN_S = 0.005
"""How long a function that never waits may keep the event loop to itself."""


@dataclass(frozen=True, slots=True)
class SharedServices:
    """What every consumer binding of a host shares.

    Attributes:
        careful_ack_waits: for how many ack waits functions get single messages at first, as this
            process takes over from one that died and any message may have been why; 0 for none.
        peers: how many processes of this host, this one included, run the same functions.
    """

    broker: Broker
    backends: SettlementBackends
    ticker: InProgressTicker
    outages: Outages
    careful_ack_waits: int = 0
    peers: int = 1


@dataclass(slots=True)
class FalseOutages:
    """How often in a row a call spoke of an outage that no probe could see."""

    count: int = 0


class ConsumerBinding:
    """Runs one function over its consumer and its mailbox until drained.

    Args:
        dispatcher: the function's.
        sources: where its messages come from, its stream first.
        workplace: the host's.
        metrics: the function's.
        runner: calls the function; the dispatcher unless given.
        before_return: see `Settlement`.

    Attributes:
        before_giving_back: awaited before what is not finished goes elsewhere.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        sources: list[Source],
        shared: SharedServices,
        metrics: FunctionMetrics,
        *,
        runner: Runner | None = None,
        before_return: BeforeReturn | None = None,
    ) -> None:
        spec = dispatcher.function.spec
        self.name = dispatcher.function.name
        self.metrics = metrics
        self._dispatcher = dispatcher
        self._runner = runner or dispatcher
        self._shared = shared
        self._settlement = Settlement(dispatcher, shared.backends, metrics, before_return)
        self._is_batch = dispatcher.function.shape == "batch"
        self._batch = spec.batch
        self._concurrency = spec.concurrency
        self._bounds = bounds_of(dispatcher.function)
        self._rate_limiter: RateLimiter | None = None
        self._recent_acks = RecentAcks()
        token_bucket = self._token_bucket()
        self.buffer = PrefetchBuffer(
            **self._bounds, fair_queue=fair_queue_of(dispatcher.function, token_bucket)
        )
        if token_bucket is not None and self.buffer.fair_queue is None:
            loop = asyncio.get_running_loop()
            self._rate_limiter = RateLimiter(self.buffer, token_bucket, poke=self._poke, loop=loop)
        sink = self._rate_limiter or self.buffer
        ack_waits_s = [source.ack_wait_s for source in sources]
        self._held = Held(self.buffer.held, min(ack_waits_s))
        self._time = asyncio.get_running_loop().time
        self._careful_until_s = 0.0
        if shared.careful_ack_waits and spec.ordered_by is None:
            self._careful_until_s = self._time() + shared.careful_ack_waits * max(ack_waits_s)
            self.buffer.resize(at_least=1, at_most=1)
        self.spill = self._spill(min(ack_waits_s))
        deliver: Callable[[Message], None] = sink.add
        if self.spill is not None:
            deliver = self.spill.deliver
        if self._careful_until_s:
            deliver = self._carefully(deliver)
        self.pullers = PullerSet(
            shared.broker,
            self.buffer,
            sources,
            sink=sink,
            deliver=deliver,
            renewed=self._recent_acks.forget_all,
        )
        self.before_giving_back: Callable[[], Awaitable[None]] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_flowing(self) -> bool:
        """Whether all its pull loops are in order."""
        return self.pullers.is_flowing

    async def start(self) -> None:
        """Begin to pull and to work."""
        self._shared.ticker.add(self._held)
        if self._is_batch:
            self._spawn(self._run_batches())
        else:
            worker = Worker(self._runner.run_event)
            for _ in range(self._concurrency):
                self.add_worker(worker)
        if self.spill is not None:
            await self.spill.start(self.pullers)
        await self.pullers.start()

    def add_worker(self, worker: Worker) -> None:
        """Have one message more worked on at a time, by this worker, until it retires."""
        self._spawn(self._run_events(worker))

    async def drain(self, grace_s: float) -> None:
        """Pull no more, finish what is here, give back what is not finished in time."""
        if self.spill is not None:
            await self.spill.finish()
        # However short the grace: what the server has sent and nobody took in costs an attempt.
        await self.pullers.stop(DRAIN_S)
        self.buffer.finish()
        if self._rate_limiter:
            await self._hand_over(self._rate_limiter.stop())
        try:
            async with asyncio.timeout(grace_s):
                await self.buffer.wait_until_empty()
        except TimeoutError:
            log.warning(
                "Not finished in time, given back", function=self.name, messages=self.buffer.count()
            )
        await self._end_work()
        aside = self.spill.moving() if self.spill is not None else set()
        await self._hand_over(list(self.buffer.held - aside))
        await self.stop()

    async def stop(self) -> None:
        """End at once; whatever is here goes back to the stream."""
        if self.spill is not None:
            await self.spill.finish()
        await self.pullers.stop(0)
        if self._rate_limiter:
            self._rate_limiter.stop()
        await self._end_work()
        for message in self.buffer.held:
            self._settlement.give_back(message)
        self.buffer.clear()
        self._shared.ticker.remove(self._held)

    async def _hand_over(self, messages: list[Message]) -> None:
        await asyncio.gather(*map(self._settlement.hand_over, messages))
        self.buffer.release_all(messages)

    async def _end_work(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.spill is not None:
            await self.spill.stop()
        if self.before_giving_back is not None:
            await self.before_giving_back()

    def _token_bucket(self) -> TokenBucket | None:
        """The turns of this process, where a rate limits them."""
        spec = self._dispatcher.function.spec
        if spec.rate is None:
            return None
        # Of an ordered function one process leads, on one host.
        share = 1 if spec.ordered_by else self._shared.peers
        return token_bucket_of(spec.rate, share, asyncio.get_running_loop().time)

    def _spill(self, ack_wait_s: float) -> Spill | None:
        fair_queue, function, backends = (
            self.buffer.fair_queue,
            self._dispatcher.function,
            self._shared.backends,
        )
        if fair_queue is None:
            return None
        return Spill(
            SpillQueues(self._shared.broker, function.name, function.spec),
            self.buffer,
            fair_queue=fair_queue,
            mailbox=backends.mailbox,
            settler=backends.settler,
            ack_wait_s=ack_wait_s,
            least=self._batch.size if self._is_batch else self._concurrency,
        )

    def _carefully(self, deliver: Callable[[Message], None]) -> Callable[[Message], None]:
        """Take single messages until those that the process before this one held have come back.

        They come within the ack wait, and before messages that were never delivered. One that kills
        this process too is alone here and costs no other an attempt.
        """

        def take(message: Message) -> None:
            until_s = self._careful_until_s
            if until_s and message.attempt == 1 and self._time() > until_s:
                self._careful_until_s = 0.0
                self.buffer.resize(**self._bounds)
                log.info("Nothing is left of the process that died, at full width", function=name)
            deliver(message)

        name = self.name
        return take

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = create_call_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()):
            log.error("A worker ended, which is a defect", function=self.name, exc_info=failure)

    async def _run_events(self, worker: Worker) -> None:
        buffer, run_event, settle = self.buffer, worker.run_event, self._settle
        ack, release = self._shared.backends.settler.ack, buffer.release
        time, metrics, recent_acks = self._time, self.metrics, self._recent_acks
        turn_ends_s = 0.0
        while not worker.is_stopped:
            if not buffer.ready:
                self._poke()
                await worker.wait(buffer)
                turn_ends_s = time() + TURN_S
            message = buffer.take()
            if message.attempt > 1 and recent_acks.has(message):
                self._acknowledge_again([message])
                await asyncio.sleep(0)
                continue
            metrics.in_flight = len(buffer.held)
            began_s = time()
            outcome = await run_event(message)
            ended_s = time()
            metrics.observe(ended_s - began_s)
            if outcome is DONE:
                ack(message)
                recent_acks.add(message)
                metrics.count("acked")
                release(message)
            else:
                recent_acks.forget(message)
                await settle(message, outcome)
            if ended_s > turn_ends_s:
                self._poke()
                await asyncio.sleep(0)
                turn_ends_s = time() + TURN_S

    async def _run_batches(self) -> None:
        slots = asyncio.Semaphore(self._concurrency)
        while True:
            await slots.acquire()
            batch = await self._collect()
            self._spawn(self._run_batch(batch, slots))

    async def _collect(self) -> list[Message]:
        """The next batch: whichever of size, bytes and wait is reached first."""
        buffer, spec = self.buffer, self._batch
        await buffer.wait()
        waited_s = self._time() - buffer.ready[0].received_at_s
        size = min(spec.size, buffer.capacity())
        await buffer.wait_for(size, spec.bytes, spec.wait - waited_s)
        return buffer.take_all(spec.size, spec.bytes)

    async def _run_batch(self, batch: list[Message], slots: asyncio.Semaphore) -> None:
        try:
            batch = self._without_repeats(batch)
            rest = await self._call_batch(batch, FalseOutages()) if batch else []
        finally:
            # The next batch need not wait until what failed of this one is stored elsewhere.
            slots.release()
        # Together: each dead letter and each parking waits for a confirmation of its own.
        await asyncio.gather(
            *(self._finish(message, self._rejudge(message, outcome)) for message, outcome in rest)
        )

    async def _call_batch(
        self, batch: list[Message], false_outages: FalseOutages
    ) -> list[tuple[Message, Outcome]]:
        """Call the function and acknowledge what is done; what is not, with its outcomes."""
        self.metrics.in_flight = len(self.buffer.held)
        began_s = self._time()
        outcomes = await self._runner.run_batch(batch)
        self.metrics.observe(self._time() - began_s)
        done: list[Message] = []
        rest: list[tuple[Message, Outcome]] = []
        for message, outcome in zip(batch, outcomes, strict=True):
            if outcome is DONE:
                done.append(message)
            else:
                self._recent_acks.forget(message)
                rest.append((message, outcome))
        self._shared.backends.settler.ack_all(done)
        self._recent_acks.add_all(done)
        self.metrics.count("acked", len(done))
        self.buffer.release_all(done)
        self._poke()
        excused = [message for message, outcome in rest if _is_outage(outcome)]
        if excused and await self._may_try_again(false_outages):
            rest = [(message, outcome) for message, outcome in rest if not _is_outage(outcome)]
            rest += await self._call_batch(excused, false_outages)
        return rest

    def _without_repeats(self, batch: list[Message]) -> list[Message]:
        """Those that are not done already, and of two deliveries of one message the later."""
        if all(message.attempt == 1 for message in batch):
            return batch
        kept: dict[Origin, Message] = {}
        done, replaced = [], []
        for message in batch:
            if message.attempt > 1 and self._recent_acks.has(message):
                done.append(message)
                continue
            origin = origin_of(message.reply)
            if origin in kept:
                replaced.append(kept[origin])
            kept[origin] = message
        self._acknowledge_again(done)
        self.buffer.release_all(replaced)
        return list(kept.values())

    def _acknowledge_again(self, done: list[Message]) -> None:
        self._shared.backends.settler.ack_all(done)
        self.metrics.count("repeated", len(done))
        self.buffer.release_all(done)

    async def _settle(self, message: Message, outcome: Outcome) -> None:
        false_outages = FalseOutages()
        while _is_outage(outcome):
            if await self._may_try_again(false_outages):
                outcome = await self._runner.run_event(message)
            else:
                outcome = self._rejudge(message, outcome)
        await self._finish(message, outcome)

    async def _may_try_again(self, false_outages: FalseOutages) -> bool:
        """Wait out an outage; False when the servers answer every time the function says otherwise.

        A server that died a moment ago may still answer a probe over a connection that outlives it,
        or be back before the probe looks: such a failure is no attempt either.
        """
        if await self._shared.outages.wait_until_over():
            false_outages.count = 0
            return True
        false_outages.count += 1
        if false_outages.count > len(FALSE_OUTAGE_PAUSES_S):
            return False
        await asyncio.sleep(FALSE_OUTAGE_PAUSES_S[false_outages.count - 1])
        return True

    async def _finish(self, message: Message, outcome: Outcome) -> None:
        try:
            await self._settlement.settle(message, outcome)
        except Exception:
            # Nothing here should fail; if it does, the message must not be held for ever.
            log.exception("Settling failed, the message is given back", function=self.name)
            self.buffer.expect(message, 0)
            self._settlement.give_back(message)
        self.buffer.release(message)
        self._poke()

    def _rejudge(self, message: Message, outcome: Outcome) -> Outcome:
        """All servers answer, so what looked like an outage is an ordinary failure."""
        if isinstance(outcome, Later) and outcome.outage is not None:
            return self._dispatcher.judge(message, outcome.outage, excuse=False)
        return outcome

    def _poke(self) -> None:
        """Tell the pull loops what is free now; by the turn, as looking costs 1 µs."""
        self.metrics.in_flight = len(self.buffer.held)
        self.metrics.timeouts = self._dispatcher.timeouts
        self.pullers.poke()


def _is_outage(outcome: Outcome) -> bool:
    return isinstance(outcome, Later) and outcome.outage is not None
