"""Who calls a function on what the buffer holds."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from runtime.binding.buffer import PrefetchBuffer
from runtime.dispatch import Outcome
from runtime.message import Message


class Runner(Protocol):
    """What calls the function: the dispatcher, or somebody before it."""

    async def run_event(self, message: Message) -> Outcome:
        """Run it on one message."""

    async def run_batch(self, messages: Sequence[Message]) -> list[Outcome]:
        """Run it on several; an outcome per message, in their order."""


class Worker:
    """Who calls the function on single messages, in one or several tasks.

    Args:
        run_event: see `Runner`.

    Attributes:
        is_retired: whether it takes no more messages.
    """

    def __init__(self, run_event: Callable[[Message], Awaitable[Outcome]]) -> None:
        self.run_event = run_event
        self.is_stopped = False
        self._idle: set[asyncio.Task[Any]] = set()

    async def wait(self, buffer: PrefetchBuffer) -> None:
        """Return when a message waits. Ends the task when the worker retires meanwhile."""
        task = asyncio.current_task()
        if task is None:
            return
        self._idle.add(task)
        try:
            await buffer.wait()
        finally:
            self._idle.discard(task)

    def stop(self) -> None:
        """Take no more messages; what it is at, it brings to its end."""
        self.is_stopped = True
        for task in self._idle:
            task.cancel()
