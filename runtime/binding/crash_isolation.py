"""What a process does after another one died: it finds out whether a message was why."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from runtime.binding.buffer import Places, PrefetchBuffer
from runtime.binding.capacity import Bounds
from runtime.binding.worker import Runner
from runtime.broker.ack_subject import deliveries_of
from runtime.broker.advisories import CODE
from runtime.dispatch import Dead, Outcome
from runtime.message import Message
from runtime.observe.logs import get_logger
from runtime.queueing.fair_queue import FairQueue

log = get_logger("runtime.crash_isolation")

_HELD_TWICE = 3
"""The delivery of a message that two processes held when they died. Not its attempt: that counts
the retries in place too, which a host that drained has handed over."""


class SingleMessageStage:
    """Narrows a buffer to one message until those that the dead process held have come back.

    They come within the ack wait, and before messages that were never delivered. A message that
    kills this process too is alone here, so the server counts the death for this message alone.
    """

    def __init__(
        self, function: str, buffer: PrefetchBuffer, bounds: Bounds, *, until_s: float
    ) -> None:
        self._function = function
        self._buffer = buffer
        self._bounds = bounds
        self._until_s = until_s
        self._is_narrow = True
        self._time = asyncio.get_running_loop().time
        buffer.resize(at_least=1, at_most=1)

    def admit(self, message: Message, places: Places) -> bool:
        """Let every message pass; the first new one after the time ends the narrowness."""
        if self._is_narrow and message.attempt == 1 and self._time() > self._until_s:
            self._is_narrow = False
            self._buffer.resize(at_least=self._bounds.at_least, at_most=self._bounds.at_most)
            log.info("Prefetching again after a process died", function=self._function)
        return True


class CrashIsolation:
    """Calls what an ordered function's dead leaders held one message at a time, and counts deaths.

    An order needs all messages of its keys here, so the server counts a death for all of them, and
    is told no limit. One death may have any reason and changes nothing. When two leaders died over
    the same messages, each of these candidates is called alone, and its sequence is stored before
    that. A message that was called alone in as many deaths as it has attempts is given up.

    Args:
        runner: calls the function.
        max_deaths: after so many a message is given up.
        store: stores what `state` says; it returns when that is stored.
        left: what the `state` of the dead leader was, if any.
    """

    def __init__(
        self,
        runner: Runner,
        max_deaths: int,
        store: Callable[[], Awaitable[None]],
        left: Mapping[str, Any] | None = None,
    ) -> None:
        self._runner = runner
        self._max_deaths = max_deaths
        self._store = store
        self._queue: FairQueue | None = None
        self._candidates: set[int] = set()
        self._called = 0
        self._deaths: dict[int, int] = {}
        if left:
            self._deaths = {int(key): count for key, count in left["deaths"].items()}
            if called := left["called"]:
                self._deaths[called] = self._deaths.get(called, 0) + 1

    def begin(self, fair_queue: FairQueue, held: Iterable[Message]) -> None:
        """Isolate those messages that two dead leaders held, if there are any.

        Args:
            fair_queue: where they wait.
            held: what a dead leader may have been calling.
        """
        self._candidates = {
            each.sequence
            for each in held
            if deliveries_of(each.reply) >= _HELD_TWICE or each.sequence in self._deaths
        }
        self._deaths = {key: self._deaths[key] for key in self._candidates & self._deaths.keys()}
        if self._candidates:
            self._queue = fair_queue
            fair_queue.most_out = 1

    def state(self) -> dict[str, Any] | None:
        """What a successor must know."""
        if not self._candidates:
            return None
        return {"called": self._called, "deaths": self._deaths}

    def is_candidate(self, message: Message) -> bool:
        """Whether the message may have ended the processes that died."""
        return message.sequence in self._candidates

    async def run_event(self, message: Message) -> Outcome:
        """Run the function on one message, or give the message up."""
        if message.sequence not in self._candidates:
            return await self._runner.run_event(message)
        dead = await self._prepare(message)
        outcome = dead or await self._runner.run_event(message)
        self._clear(message)
        return outcome

    async def run_batch(self, messages: Sequence[Message]) -> list[Outcome]:
        """Run the function on several messages; while candidates are left they come one by one."""
        [first, *_] = messages
        if first.sequence not in self._candidates:
            return await self._runner.run_batch(messages)
        dead = await self._prepare(first)
        outcomes: list[Outcome] = [dead] if dead else await self._runner.run_batch(messages)
        self._clear(first)
        return outcomes

    async def _prepare(self, message: Message) -> Dead | None:
        if self._deaths.get(message.sequence, 0) >= self._max_deaths:
            return Dead(CODE, "every attempt ended without an answer: the process died or hung")
        self._called = message.sequence
        await self._store()
        return None

    def _clear(self, message: Message) -> None:
        self._candidates.discard(message.sequence)
        self._deaths.pop(message.sequence, None)
        self._called = 0
        if not self._candidates and self._queue is not None:
            self._queue.most_out = None
            self._queue = None
