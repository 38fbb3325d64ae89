"""Sends the log lines of this process to listeners over NATS, while their leases last."""

import asyncio
from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import Final

from runtime.broker.connection import Broker
from runtime.broker.subscription import Subscription
from runtime.errors import PublishFailed, Unsendable
from runtime.log_stream.log_protocol import (
    LEASE_S,
    LOG_REQUESTS,
    REFUSED,
    LogRequest,
    encode_lines,
    in_messages,
    read_request,
)
from runtime.message import Message
from runtime.observe.log_feed import FEED, LEVELS, Line, LogFeed, LogFilter
from runtime.process_identity import ProcessIdentity
from runtime.supervised_task import SupervisedTask

MOST_LISTENERS: Final = 16
SEND_EVERY_S: Final = 0.1
LINES_AT_ONCE: Final = 200
"""The most lines of one listener in `SEND_EVERY_S`: 2,000 a second."""


class LogPublisher:
    """Answers listeners' requests, and sends lines to each listener's inbox.

    A listener gets at most `LINES_AT_ONCE` lines each `SEND_EVERY_S`; of a flood the lines that
    find no room in the feed's queue are counted, and the number is sent. A listener that does not
    repeat its request within `LEASE_S` is forgotten. Nothing that fails here is logged: a line
    about a line that could not be sent would be the next one.

    Args:
        broker: the connection.
        process: the process that the messages name.
        functions: names of the functions that the process runs; may change.
        feed: the lines.
    """

    def __init__(
        self,
        broker: Broker,
        process: ProcessIdentity,
        functions: Collection[str],
        feed: LogFeed = FEED,
    ) -> None:
        self._broker = broker
        self._process = process
        self._functions = functions
        self._feed = feed
        self._ends_at_s: dict[str, float] = {}
        self._wanted = asyncio.Event()
        self._subscription: Subscription | None = None
        self._task = SupervisedTask(self._run, "log lines")

    async def start(self) -> None:
        """Begin to answer requests.

        Raises:
            Unavailable: the connection is gone.
        """
        self._subscription = await self._broker.subscribe(LOG_REQUESTS, self._answer)
        self._task.start()

    async def stop(self) -> None:
        """Send the lines that wait, and end."""
        await self._task.stop()
        if self._subscription is not None:
            await self._subscription.unsubscribe()
        for inbox in list(self._ends_at_s):
            await self._send_waiting(inbox)
            self._forget(inbox)

    async def _answer(self, message: Message) -> None:
        request = read_request(message)
        if request is None:
            return
        inbox = message.reply
        if request.stop:
            self._forget(inbox)
            return
        is_new = inbox not in self._ends_at_s
        if is_new and len(self._ends_at_s) >= MOST_LISTENERS:
            await self._send(inbox, [], first=True, refused=REFUSED)
            return
        self._ends_at_s[inbox] = asyncio.get_running_loop().time() + LEASE_S
        chosen = LogFilter(LEVELS[request.level], request.function)
        lines = self._feed.listen(inbox, chosen, last=request.last, since=request.since)
        self._wanted.set()
        if is_new:
            await self._send(inbox, lines, first=True, knows=self._knows(request))

    def _knows(self, request: LogRequest) -> bool:
        pattern = request.function
        return pattern is None or any(fnmatchcase(name, pattern) for name in self._functions)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wanted.wait()
            for inbox, ends_at_s in list(self._ends_at_s.items()):
                if loop.time() > ends_at_s:
                    self._forget(inbox)
                else:
                    await self._send_waiting(inbox)
            await asyncio.sleep(SEND_EVERY_S)

    async def _send_waiting(self, inbox: str) -> None:
        lines, dropped = self._feed.take(inbox, LINES_AT_ONCE)
        if lines or dropped:
            await self._send(inbox, lines, dropped=dropped)

    async def _send(
        self, inbox: str, lines: list[Line], *, dropped: int = 0, **more: bool | str
    ) -> None:
        parts = list(in_messages(lines))
        for number, part in enumerate(parts, start=1):
            flags = {**more, "more": number < len(parts)}
            data = encode_lines(self._feed.id, self._process, part, dropped=dropped, **flags)
            dropped = 0
            try:
                await self._broker.publish_core(inbox, data)
            except (PublishFailed, Unsendable):
                return

    def _forget(self, inbox: str) -> None:
        self._ends_at_s.pop(inbox, None)
        self._feed.forget(inbox)
        if not self._ends_at_s:
            self._wanted.clear()


__all__ = ["LogPublisher"]
