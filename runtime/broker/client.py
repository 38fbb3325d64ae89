"""The client library's connection, mended where it loses things."""

import asyncio
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import nats.errors
from nats.aio.client import NO_RESPONDERS_STATUS, PING_PROTO, Client, Srv
from nats.aio.msg import Msg

from runtime.broker.outgoing import publish_command, settlement_commands
from runtime.broker.transport import ThreadSafeTransport
from runtime.errors import Unsendable

PENDING_BYTES = 32 * 1024 * 1024
"""Outgoing bytes kept while the connection is down."""


class OrderedClient(Client):
    """The client library's connection, with its PING in line and many messages in one write.

    It goes over a `ThreadSafeTransport`.

    The library writes PING to the socket at once, ahead of commands it still holds back, so that
    its `flush` proves nothing and its `drain` ends before the server has read the UNSUB: messages
    that arrive in between are lost. Source: nats-py 2.16 `client.py`, `_send_ping`.
    """

    _transport: ThreadSafeTransport | None

    async def _send_ping(self, future: "asyncio.Future[bool] | None" = None) -> None:
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        self._pending.append(PING_PROTO)
        self._pending_data_size += len(PING_PROTO)
        # Without waiting for room: whoever pings is to find out that a server takes nothing.
        if self._flush_queue is not None and not self._flush_queue.full():
            await self._flush_pending()

    async def _process_pong(self) -> None:
        """As the library's, but one that nobody waits for any more does not end the reading.

        Whoever asked may have been cancelled, or found that it takes too long. Source: nats-py 2.16
        `client.py`: the same there ends `_read_loop`, and the connection is mute until the server
        is given up for dead.
        """
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def publish(
        self,
        subject: str,
        payload: bytes = b"",
        reply: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """As the library's, for what a server would take alone; the library's requests come here.

        Raises:
            Unsendable: see `publish_command`.
        """
        await self._write(publish_command(subject, reply, headers, payload, self._max_payload))

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,  # noqa: ASYNC109 - the library's
        old_style: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> Msg:
        """As the library's, but one that is cancelled ends, and one that is refused leaves nothing.

        Raises:
            Unsendable: see `publish_command`.
        """
        if not self._resp_sub_prefix:
            await self._init_request_sub()
        inbox = (self._resp_sub_prefix or b"").decode()
        token = secrets.token_hex(13)
        answered: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._resp_map[token] = answered
        try:
            await self.publish(subject, payload, f"{inbox}{token}", headers)
            async with asyncio.timeout(timeout):
                answer = await answered
        finally:
            del self._resp_map[token]
        if answer.headers and answer.headers.get("Status") == NO_RESPONDERS_STATUS:
            raise nats.errors.NoRespondersError
        return answer

    async def flush(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 - the library's
        """As the library's, but one that is cancelled ends."""
        with _heeding_cancellation():
            await super().flush(*arguments, **named)

    async def _connect_to_server(self, s: Srv) -> None:
        """Close what the try before has left open, then connect with a transport of our own."""
        if self._transport is not None:
            self._transport.close()
        self._transport = ThreadSafeTransport()
        await super()._connect_to_server(s)

    def stand_in(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """See `ThreadSafeTransport.stand_in`; while there is no connection, nothing happens."""
        if self.is_connected and self._transport is not None:
            commands, _ = settlement_commands(messages, self._max_payload)
            self._transport.stand_in(commands)

    def drop_unsent(self) -> None:
        """Forget what was not sent: a server that takes nothing would keep `close` for ever."""
        self._pending = []
        self._pending_data_size = 0

    async def publish_all(self, messages: Sequence[tuple[str, bytes]]) -> list[Unsendable]:
        """As `publish` for each subject and payload, at a third of its cost; those refused."""
        commands, refused = settlement_commands(messages, self._max_payload)
        await self._write(commands)
        return refused

    async def publish_all_headed(
        self, messages: Sequence[tuple[str, str, Mapping[str, str], bytes]]
    ) -> None:
        """As `publish` for each subject, reply, headers and payload, in one write.

        Raises:
            Unsendable: see `publish_command`; nothing is sent.
        """
        most = self._max_payload
        await self._write(b"".join([publish_command(*message, most) for message in messages]))

    async def _write(self, commands: bytes) -> None:
        if self.is_closed:
            raise nats.errors.ConnectionClosedError
        if self.is_draining_pubs:
            raise nats.errors.ConnectionDrainingError
        if not self.is_connected and len(commands) + self.pending_data_size > PENDING_BYTES:
            raise nats.errors.OutboundBufferLimitError
        await self._send_command(commands)
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()


@contextmanager
def _heeding_cancellation() -> Iterator[None]:
    """Have a cancellation heard that came together with what was waited for.

    Before Python 3.12 `asyncio.wait_for`, which the library waits with, swallows it: a loop that
    asks JetStream again and again would never end. A host that was stopped a moment after its start
    hung in its drain, about once in twenty times.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        yield
    finally:
        if task and task.cancelling() > before:
            raise asyncio.CancelledError
