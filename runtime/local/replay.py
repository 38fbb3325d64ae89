"""Calls one function on messages of the past, and counts what became of them.

Nothing is settled: the messages stay in their stream as they are. A message that fails is tried
again, as often as the function's retry policy says; what is given up is listed and makes no dead
letter, since the message is still in its stream.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from runtime.call.outcome import Dead, Done, Later, Outcome
from runtime.dispatch import Dispatcher
from runtime.message import Message
from runtime.observe.logs import get_logger
from runtime.queueing.token_bucket import TokenBucket

log = get_logger("runtime.replay")

DELAY_CAP_S = 5.0
"""The longest wait before another attempt: a person waits for the end of the replay."""
OUTAGE_PAUSE_S = 2.0
MOST_FAILURES = 10_000
"""The most failures that are kept in full; all are counted."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A message that was given up.

    Attributes:
        where: `file:line` of the function that failed; empty when it is not known.
    """

    sequence: int
    subject: str
    code: str
    reason: str
    attempts: int
    where: str


@dataclass(slots=True)
class Tally:
    """What became of the messages so far.

    Attributes:
        failures: the first `MOST_FAILURES` of `failed`.
        retried: calls beyond the first of a message.
    """

    done: int = 0
    failed: int = 0
    retried: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def settled(self) -> int:
        """The number of messages that are done or given up."""
        return self.done + self.failed


class Replay:
    """Runs messages through a dispatcher, as many at a time as the function's manifest says.

    The messages of an ordered function run one after another, whatever their keys.

    Args:
        dispatcher: of the function.
        bucket: one token for each message; None for no rate.
        servers_answer: whether NATS and PostgreSQL answer: then a failure is the function's own.
        on_change: called after each call.

    Attributes:
        tally: the result so far.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        bucket: TokenBucket | None,
        servers_answer: Callable[[], Awaitable[bool]],
        on_change: Callable[[Tally], None],
    ) -> None:
        self._dispatcher = dispatcher
        self._bucket = bucket
        self._servers_answer = servers_answer
        self._on_change = on_change
        self._open: set[int] = set()
        self._postponed: dict[int, int] = {}
        self._seen = 0
        self._stopping = asyncio.Event()
        self.tally = Tally()

    @property
    def next_sequence(self) -> int:
        """The sequence from which another replay would go on; 0 before the first message."""
        return min(self._open, default=self._seen + 1) if self._seen else 0

    def stop(self) -> None:
        """Take no more messages; the calls under way end."""
        self._stopping.set()

    async def run(self, messages: AsyncIterator[Message]) -> Tally:
        """Work on all messages, or on those until `stop`.

        Raises:
            ConfigError, Unavailable: the messages cannot be read any more.
        """
        spec = self._dispatcher.function.spec
        width = 1 if spec.ordered_by else spec.concurrency
        queue: asyncio.Queue[list[Message] | None] = asyncio.Queue(maxsize=width)
        reading = asyncio.create_task(self._read(messages, queue, width))
        workers = [asyncio.create_task(self._work(queue)) for _ in range(width)]
        tasks = [reading, *workers]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return self.tally

    async def _read(
        self,
        messages: AsyncIterator[Message],
        queue: asyncio.Queue[list[Message] | None],
        width: int,
    ) -> None:
        function = self._dispatcher.function
        is_batch, limits = function.shape == "batch", function.spec.batch
        part: list[Message] = []
        size_bytes = 0
        async for message in messages:
            if self._stopping.is_set() or not await self._may_go():
                break
            # An earlier delivery has called the function already.
            message.called_before = True
            message.attempt = 1
            self._seen = message.sequence
            self._open.add(message.sequence)
            part.append(message)
            size_bytes += len(message.data)
            if not is_batch or len(part) >= limits.size or size_bytes >= limits.bytes:
                await queue.put(part)
                part, size_bytes = [], 0
        if part:
            await queue.put(part)
        for _ in range(width):
            await queue.put(None)

    async def _may_go(self) -> bool:
        """Wait for a token; False when the replay is stopped meanwhile."""
        bucket = self._bucket
        while bucket is not None and not bucket.take():
            try:
                async with asyncio.timeout(bucket.next_in_s()):
                    await self._stopping.wait()
            except TimeoutError:
                continue
            return False
        return True

    async def _work(self, queue: asyncio.Queue[list[Message] | None]) -> None:
        while (part := await queue.get()) is not None:
            if not self._stopping.is_set():
                await self._settle(part)

    async def _settle(self, part: list[Message]) -> None:
        left = part
        while left:
            outcomes = await self._call(left)
            again: list[Message] = []
            delay_s = 0.0
            for message, outcome in zip(left, outcomes, strict=True):
                if isinstance(outcome, Later):
                    again.append(message)
                    delay_s = max(delay_s, self._prepare_again(message, outcome))
                else:
                    self._note(message, outcome)
            left = again
            self._on_change(self.tally)
            if left and await self._is_stopped_within(min(delay_s, DELAY_CAP_S)):
                return

    async def _call(self, messages: Sequence[Message]) -> list[Outcome]:
        dispatcher = self._dispatcher
        if dispatcher.function.shape == "batch":
            outcomes = await dispatcher.run_batch(messages)
        else:
            outcomes = [await dispatcher.run_event(messages[0])]
        judged: list[Outcome] = []
        for message, outcome in zip(messages, outcomes, strict=True):
            if isinstance(outcome, Later) and outcome.outage and await self._servers_answer():
                judged.append(dispatcher.judge(message, outcome.outage, excuse=False))
            elif isinstance(outcome, Later) and not outcome.counts and self._is_too_often(message):
                judged.append(Dead("POSTPONED", outcome.reason, outcome.error_type))
            else:
                judged.append(outcome)
        return judged

    def _is_too_often(self, message: Message) -> bool:
        """Whether a message was postponed as often as it has attempts: a replay must end."""
        calls = self._postponed[message.sequence] = self._postponed.get(message.sequence, 0) + 1
        return calls >= self._dispatcher.function.spec.retry.max_attempts

    def _prepare_again(self, message: Message, outcome: Later) -> float:
        """Seconds to wait before the next attempt of the message."""
        if outcome.outage is not None:
            log.warning("A server is away; waiting", reason=outcome.reason)
            return OUTAGE_PAUSE_S
        log.warning(
            "An attempt failed",
            stream=message.stream,
            sequence=message.sequence,
            attempt=message.attempt,
            error=outcome.error_type,
            reason=outcome.reason,
            at=outcome.place(),
        )
        message.attempt += outcome.counts
        self.tally.retried += 1
        return outcome.delay_s

    def _note(self, message: Message, outcome: Done | Dead) -> None:
        self._open.discard(message.sequence)
        self._postponed.pop(message.sequence, None)
        tally = self.tally
        if isinstance(outcome, Done):
            tally.done += 1
            return
        tally.failed += 1
        if len(tally.failures) < MOST_FAILURES:
            tally.failures.append(
                Failure(
                    message.sequence,
                    message.subject,
                    outcome.code,
                    outcome.reason,
                    message.attempt,
                    outcome.place(),
                )
            )

    async def _is_stopped_within(self, delay_s: float) -> bool:
        try:
            async with asyncio.timeout(delay_s):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True
