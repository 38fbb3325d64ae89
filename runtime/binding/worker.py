"""Worker tasks: take messages from the buffer, call the function, settle the outcomes."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

from runtime.binding.buffer import PrefetchBuffer
from runtime.binding.settlement import Settlement
from runtime.broker.ack_subject import Origin, origin_of
from runtime.broker.recent_acks import RecentAcks
from runtime.call.call_task import create_call_task
from runtime.dispatch import DONE, Dispatcher, Later, Outcome
from runtime.message import Message
from runtime.observe.logs import get_logger
from runtime.observe.metrics import FunctionMetrics
from runtime.resource.outage import Outages

log = get_logger("runtime.worker")

FALSE_OUTAGE_PAUSES_S = (0.2, 0.5, 1.0)
"""Wait before a call is repeated that reported an outage which no probe found."""
TURN_S = 0.005
"""How long calls that never await may run before the task yields to the event loop."""


class Runner(Protocol):
    """Calls the function: the dispatcher, or a layer in front of it."""

    async def run_event(self, message: Message) -> Outcome:
        """Run the function on one message."""

    async def run_batch(self, messages: Sequence[Message]) -> list[Outcome]:
        """Run the function on several messages; return an outcome for each, in order."""


@dataclass(slots=True, eq=False)
class Worker:
    """Calls the function on single messages, in one or several tasks.

    Attributes:
        run_event: see `Runner`.
        is_stopped: whether the worker takes no more messages.
    """

    run_event: Callable[[Message], Awaitable[Outcome]]
    is_stopped: bool = False


class WorkerPool:
    """The tasks that work on one function's messages.

    A task that fails because of a defect of the host is logged and replaced, and its message is
    settled as failed.

    Args:
        dispatcher: the function's.
        runner: calls the function.
        buffer: the buffer from which messages are taken.
        settlement: settles the messages.
        recent_acks: tells which deliveries are repeats.
        outages: waits for unavailable servers.
        metrics: the function's.
        wake_pullers: called when places became free.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        runner: Runner,
        buffer: PrefetchBuffer,
        settlement: Settlement,
        recent_acks: RecentAcks,
        *,
        outages: Outages,
        metrics: FunctionMetrics,
        wake_pullers: Callable[[], None],
    ) -> None:
        self._dispatcher = dispatcher
        self._runner = runner
        self._buffer = buffer
        self._settlement = settlement
        self._recent_acks = recent_acks
        self._outages = outages
        self._metrics = metrics
        self._wake_pullers = wake_pullers
        spec = dispatcher.function.spec
        self._is_batch = dispatcher.function.shape == "batch"
        self._batch = spec.batch
        # Half of the bytes, so that the next batch can be collected meanwhile.
        self._batch_bytes = min(spec.batch.bytes, max(1, buffer.max_bytes // 2))
        self._concurrency = spec.concurrency
        self._collecting = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopping = False
        self._time = asyncio.get_running_loop().time

    def start(self) -> None:
        """Start the tasks."""
        worker = Worker(self._runner.run_event)
        for _ in range(self._concurrency):
            if self._is_batch:
                self._spawn(self._run_batches)
            else:
                self.add_worker(worker)

    def add_worker(self, worker: Worker) -> None:
        """Add a worker, which calls the function on one message at a time until it is stopped."""
        self._spawn(lambda: self._run_events(worker))

    def stop_worker(self, worker: Worker) -> None:
        """Let a worker take no more messages; running calls are finished."""
        worker.is_stopped = True
        self._buffer.wake_waiters()

    async def stop(self) -> None:
        """Cancel every call; unfinished messages stay in the buffer."""
        self._is_stopping = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def wake_pullers(self) -> None:
        """Tell the pull loops about free places; once a turn, because a check costs 1 µs a loop."""
        self._metrics.in_flight = len(self._buffer.held)
        self._metrics.timeouts = self._dispatcher.timeouts
        self._wake_pullers()

    def _spawn(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        def ended(task: "asyncio.Task[None]") -> None:
            self._tasks.discard(task)
            if self._is_stopping:
                return
            failure = asyncio.CancelledError() if task.cancelled() else task.exception()
            if failure is not None:
                log.error("A worker failed, the next begins", function=self._name, exc_info=failure)
                self._spawn(run)

        task = create_call_task(run())
        self._tasks.add(task)
        task.add_done_callback(ended)

    @property
    def _name(self) -> str:
        return self._dispatcher.function.name

    async def _run_events(self, worker: Worker) -> None:
        buffer, run_event, ack = self._buffer, worker.run_event, self._settlement.ack
        # Not the loop's clock: uvloop's counts whole milliseconds.
        time, metrics, recent_acks = perf_counter, self._metrics, self._recent_acks
        turn_ends_s = 0.0
        while not worker.is_stopped:
            if not buffer.ready:
                self.wake_pullers()
                await buffer.wait()
                turn_ends_s = time() + TURN_S
                continue
            message = buffer.take()
            try:
                if message.attempt > 1 and recent_acks.has(message):
                    self._ack_repeats([message])
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
                    buffer.release(message)
                else:
                    recent_acks.forget(message)
                    await self._settle(message, outcome)
                    # A failure refers to the function's frames: an idle worker must not keep them,
                    # as the function may be replaced meanwhile.
                    del outcome
            except BaseException as failure:
                self._on_lost_call([message], failure)
                raise
            if ended_s > turn_ends_s:
                self.wake_pullers()
                await asyncio.sleep(0)
                turn_ends_s = time() + TURN_S

    async def _run_batches(self) -> None:
        while True:
            async with self._collecting:
                batch = await self._collect()
            try:
                batch = self._without_repeats(batch)
                rest = await self._call_batch(batch) if batch else []
            except BaseException as failure:
                self._on_lost_call(batch, failure)
                raise
            if rest:
                # The next batch need not wait until the failed messages of this one are stored
                # elsewhere.
                task = asyncio.create_task(self._finish_all(rest))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                rest = []  # As `outcome` above.

    async def _collect(self) -> list[Message]:
        """Collect the next batch, until its size, its bytes or its wait is reached."""
        buffer, spec = self._buffer, self._batch
        while not buffer.ready:
            await buffer.wait()
        waited_s = self._time() - buffer.ready[0].received_at_s
        size = min(spec.size, buffer.capacity())
        await buffer.wait_for(size, self._batch_bytes, spec.wait - waited_s)
        return buffer.take_all(spec.size, self._batch_bytes)

    async def _call_batch(
        self, batch: list[Message], false_outages: int = 0
    ) -> list[tuple[Message, Outcome]]:
        """Call the function and acknowledge done messages; return the others and outcomes."""
        self._metrics.in_flight = len(self._buffer.held)
        began_s = perf_counter()
        outcomes = await self._runner.run_batch(batch)
        self._metrics.observe(perf_counter() - began_s)
        done: list[Message] = []
        rest: list[tuple[Message, Outcome]] = []
        for message, outcome in zip(batch, outcomes, strict=True):
            if outcome is DONE:
                done.append(message)
            else:
                self._recent_acks.forget(message)
                rest.append((message, outcome))
        self._settlement.ack_all(done)
        self._recent_acks.add_all(done)
        self._buffer.release_all(done)
        self.wake_pullers()
        excused = [message for message, outcome in rest if _is_outage(outcome)]
        if excused and (again := await self._wait_for_servers(false_outages)) is not None:
            rest = [(message, outcome) for message, outcome in rest if not _is_outage(outcome)]
            rest += await self._call_batch(excused, again)
        return rest

    def _without_repeats(self, batch: list[Message]) -> list[Message]:
        """The messages that are not done already; of two deliveries of one message, the later."""
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
        self._ack_repeats(done)
        self._buffer.release_all(replaced)
        return list(kept.values())

    def _ack_repeats(self, done: list[Message]) -> None:
        self._settlement.ack_repeats(done)
        self._buffer.release_all(done)

    async def _settle(self, message: Message, outcome: Outcome) -> None:
        false_outages = 0
        while _is_outage(outcome):
            again = await self._wait_for_servers(false_outages)
            if again is None:
                break
            false_outages = again
            outcome = await self._runner.run_event(message)
        await self._finish(message, outcome)

    async def _wait_for_servers(self, false_outages: int) -> int | None:
        """Wait out an outage; return how many in a row no probe found, or None when too many.

        A server that died a moment ago may still answer a probe over an old connection, or be back
        before the probe runs: such a failure does not count as an attempt either.
        """
        if await self._outages.wait_until_over():
            return 0
        if false_outages == len(FALSE_OUTAGE_PAUSES_S):
            return None
        await asyncio.sleep(FALSE_OUTAGE_PAUSES_S[false_outages])
        return false_outages + 1

    async def _finish_all(self, rest: list[tuple[Message, Outcome]]) -> None:
        # Concurrently: each dead letter and each parking waits for a confirmation of its own.
        await asyncio.gather(*(self._finish(message, outcome) for message, outcome in rest))

    async def _finish(self, message: Message, outcome: Outcome) -> None:
        try:
            outcome = self._rejudge(message, outcome)
            has_left = await self._settlement.settle(message, outcome)
        except Exception:
            # Settling should not fail; if it does, the message must not be held for ever.
            log.exception("Settling failed, the message is tried again", function=self._name)
            has_left = self._settlement.retry_later(message)
        if has_left:
            self._buffer.release(message)
        self.wake_pullers()

    def _on_lost_call(self, messages: Sequence[Message], failure: BaseException) -> None:
        """Settle the messages of a call that ended without an outcome, unless the pool ended it."""
        if self._is_stopping:
            return
        kind = type(failure).__name__
        log.debug("A call ended without an outcome", function=self._name, error=kind)
        for message in messages:
            if message in self._buffer.held and self._settlement.retry_later(message):
                self._buffer.release(message)

    def _rejudge(self, message: Message, outcome: Outcome) -> Outcome:
        """Judge a supposed outage as an ordinary failure, because all servers answer."""
        if isinstance(outcome, Later) and outcome.outage is not None:
            return self._dispatcher.judge(message, outcome.outage, excuse=False)
        return outcome


def _is_outage(outcome: Outcome) -> bool:
    return isinstance(outcome, Later) and outcome.outage is not None
