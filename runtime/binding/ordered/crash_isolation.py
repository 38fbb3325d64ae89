"""Finding the message that ends its process, while the others wait."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from runtime.binding.fair_queue import FairQueue
from runtime.binding.worker import Runner
from runtime.broker.advisories import CODE
from runtime.dispatch import Dead, Outcome
from runtime.message import Message


class CrashIsolation:
    """After processes died: calls one message at a time, and writes down which before each call.

    All that a dead process may have been calling is under suspicion until it was called once. One
    death may have any reason, and slows nobody down. When another process dies before it has called
    all candidates, one of them is why: then each is called alone, and a message that ends its
    process is given up after as many deaths as it has attempts.

    Args:
        runner: calls the function.
        max_deaths: after so many a message is given up.
        write_down: stores what `state` says; it returns when that is stored.
        left: what the `state` of the dead process was, if any.
    """

    def __init__(
        self,
        runner: Runner,
        max_deaths: int,
        write_down: Callable[[], Awaitable[None]],
        left: Mapping[str, Any] | None = None,
    ) -> None:
        self._runner = runner
        self._max_deaths = max_deaths
        self._write_down = write_down
        self._fair_queue: FairQueue | None = None
        self._candidates: set[int] = set()
        self._called = 0
        self._deaths: dict[int, int] = {}
        self._in_a_row = 0
        if left:
            self._in_a_row = left["in_a_row"]
            self._deaths = {int(key): count for key, count in left["deaths"].items()}
            if called := left["called"]:
                self._deaths[called] = self._deaths.get(called, 0) + 1

    def begin(self, fair_queue: FairQueue, candidates: Iterable[Message]) -> None:
        """Watch the candidates, carefully unless this was the first death; then write that down.

        Args:
            fair_queue: where they wait.
            candidates: what the dead process may have been calling.
        """
        self._candidates = {message.sequence for message in candidates}
        self._deaths = {key: self._deaths[key] for key in self._candidates & self._deaths.keys()}
        self._in_a_row += 1
        if self._candidates and self._in_a_row > 1:
            self._fair_queue = fair_queue
            fair_queue.most_out = 1

    def state(self) -> dict[str, Any] | None:
        """What a successor must know."""
        if not self._candidates and not self._deaths:
            return None
        return {"called": self._called, "deaths": self._deaths, "in_a_row": self._in_a_row}

    def candidates(self, message: Message) -> bool:
        """Whether the message may have ended the process that died."""
        return message.sequence in self._candidates

    async def run_event(self, message: Message) -> Outcome:
        """Run the function on one message, or give it up."""
        if message.sequence not in self._candidates:
            return await self._runner.run_event(message)
        if (dead := await self._prepare(message)) is not None:
            outcome: Outcome = dead
        else:
            outcome = await self._runner.run_event(message)
        self._clear(message)
        return outcome

    async def run_batch(self, messages: Sequence[Message]) -> list[Outcome]:
        """Run the function on several; while being careful they come one by one."""
        [first, *_] = messages
        if self._fair_queue is None or first.sequence not in self._candidates:
            outcomes = await self._runner.run_batch(messages)
            for message in messages:
                self._clear(message)
            return outcomes
        if (dead := await self._prepare(first)) is not None:
            outcomes = [dead]
        else:
            outcomes = await self._runner.run_batch(messages)
        self._clear(first)
        return outcomes

    async def _prepare(self, message: Message) -> Dead | None:
        if self._deaths.get(message.sequence, 0) >= self._max_deaths:
            return Dead(CODE, "every attempt ended without an answer: the process died or hung")
        if self._fair_queue is not None:
            self._called = message.sequence
            await self._write_down()
        return None

    def _clear(self, message: Message) -> None:
        self._candidates.discard(message.sequence)
        self._deaths.pop(message.sequence, None)
        self._called = 0
        if not self._candidates:
            self._in_a_row = 0
            if self._fair_queue is not None:
                self._fair_queue.most_out = None
