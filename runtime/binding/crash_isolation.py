"""Isolates messages after a process died, to find the one that kills processes."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from runtime.binding.buffer import Places, PrefetchBuffer
from runtime.binding.worker import Runner
from runtime.broker.ack_subject import deliveries_of
from runtime.broker.advisories import CODE
from runtime.dispatch import Dead, Outcome
from runtime.message import Message
from runtime.observe.logs import get_logger
from runtime.queueing.capacity import Bounds
from runtime.queueing.fair_queue import FairQueue

log = get_logger("runtime.crash_isolation")

_HELD_TWICE = 3
"""The delivery of a message that two dead processes held. Not its attempt, which also counts
retries in place that a draining host has handed over."""


class SingleMessageStage:
    """Limits the buffer to one message until the dead process's messages were redelivered.

    They are redelivered within the ack wait, and before new messages. A message that kills this
    process too is then held alone, so the server counts the death only for this message.
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
        """Let every message pass; the first new message after the time ends the limit."""
        if self._is_narrow and message.attempt == 1 and self._time() > self._until_s:
            self._is_narrow = False
            self._buffer.resize(at_least=self._bounds.at_least, at_most=self._bounds.at_most)
            log.info("Prefetching again after a process died", function=self._function)
        return True


class CrashIsolation:
    """Calls the messages that dead leaders held one at a time, and counts deaths for each.

    A leader holds all messages of its keys, so the server counts a death for all of them, and gets
    no delivery limit. One death may have any cause and changes nothing. When two leaders died with
    the same messages, each of these candidates is called alone, and its sequence is stored before
    the call. A message that was called alone in as many deaths as it has attempts is given up.

    Args:
        runner: calls the function.
        max_deaths: number of deaths after which a message is given up.
        store: stores the value of `state`; returns when it is stored.
        left: the last `state` of the dead leader, if any.
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
        """Isolate the messages that two dead leaders held, if there are any.

        Args:
            fair_queue: the queue in which they wait.
            held: the messages that a dead leader may have been calling.
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
        """The data for a successor."""
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
        outcome = await self._prepare(message) or await self._runner.run_event(message)
        self._clear(message)
        return outcome

    async def run_batch(self, messages: Sequence[Message]) -> list[Outcome]:
        """Run the function on several messages; candidates are run one by one."""
        # While there are candidates, one message is taken at a time.
        if messages[0].sequence not in self._candidates:
            return await self._runner.run_batch(messages)
        dead = await self._prepare(messages[0])
        outcomes: list[Outcome] = [dead] if dead else await self._runner.run_batch(messages)
        self._clear(messages[0])
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
