"""The client library's connection, corrected where it loses messages or stops reconnecting."""

import asyncio
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import nats.errors
from nats.aio.client import NO_RESPONDERS_STATUS, PING_PROTO, Client, Srv

from runtime.broker.headers import unreadable_subject
from runtime.broker.incoming import HeaderError, Parser, read_headers
from runtime.broker.memory_transport import MemoryTransport, is_registered
from runtime.broker.outgoing import check_pattern, publish_command, settlement_commands
from runtime.broker.subscription import Callback, CallbackFailures, CallbackSubscription
from runtime.broker.transport import ThreadSafeTransport
from runtime.errors import Unsendable
from runtime.message import NO_HEADERS, Message, Unreadable
from runtime.observe.logs import get_logger
from runtime.subjects import HOST_INBOX

log = get_logger("runtime.broker")

PENDING_BYTES = 32 * 1024 * 1024
"""Outgoing bytes kept while the connection is down."""
RECONNECT_WAIT_S = 0.25
REFUSED_WAIT_CAP_S = 5.0
STEADY_S = 10.0
"""A connection that lasted this long is a good one: the waits after refusals start small again."""
_READ_BYTES = 65_536
_PERMISSIONS = "permissions violation"


class ServerRefused(nats.errors.Error):
    """The server said `-ERR`, and then ends the connection. The text is the server's."""


class OrderedClient(Client):
    """Connection that sends PING in order, writes many messages at once and always reconnects.

    The connection uses a `ThreadSafeTransport` and a `Parser` of its own. It connects again after
    every loss and every error of the server, until it is closed.

    The library writes PING to the socket at once, ahead of commands that are still in its buffer.
    So its `flush` proves nothing, and its `drain` ends before the server has read the UNSUB:
    messages that arrive in between are lost. Source: nats-py 2.16 `client.py`, `_send_ping`.
    """

    _transport: ThreadSafeTransport | MemoryTransport | None

    def __init__(self) -> None:
        super().__init__()
        self._ps = Parser(self)  # type: ignore[assignment]
        self._listeners: dict[int, CallbackSubscription] = self._subs  # type: ignore[assignment]
        self._failures = CallbackFailures()
        self._refusals = 0
        self._stands_since_s = 0.0
        self._answers: dict[str, asyncio.Future[Message]] = {}
        self._answer_inbox = ""

    async def listen(
        self, subject: str, callback: Callback, queue: str = ""
    ) -> CallbackSubscription:
        """Subscribe, and call `callback` for each message; see `CallbackSubscription`.

        Raises:
            Unsendable: the subject or queue group is not one to subscribe to.
        """
        check_pattern(subject, queue)
        if self.is_closed:
            raise nats.errors.ConnectionClosedError
        self._sid += 1
        subscription = CallbackSubscription(
            self,
            self._sid,
            subject,
            callback=callback,
            queue=queue,
            failures=self._failures,
        )
        self._listeners[self._sid] = subscription
        await self._send_subscribe(subscription)
        return subscription

    def deliver(self, sid: int, subject: bytes, reply: bytes, payload: bytes, block: bytes) -> None:
        """Pass a message to its subscription. Raises nothing, whatever the bytes are."""
        subscription = self._listeners.get(sid)
        if subscription is None:
            return
        try:
            headers = read_headers(block) if block else NO_HEADERS
            message = Message(subject.decode(), payload, headers, reply.decode())
        except (HeaderError, UnicodeDecodeError):
            message = _unreadable(subject, reply, payload, block)
        subscription.take(message)

    async def publish(
        self,
        subject: str,
        payload: bytes = b"",
        reply: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """As the library's, but refuse a message that the server would not take.

        Raises:
            Unsendable: see `publish_command`.
        """
        await self._write(publish_command(subject, reply, headers, payload, self._max_payload))

    async def ask(
        self,
        subject: str,
        payload: bytes,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> Message:
        """Send a request and wait for its first answer.

        Raises:
            NoRespondersError: no subscriber for the subject.
            TimeoutError: no answer arrived in time.
            Unsendable: see `publish_command`.
        """
        if not self._answer_inbox:
            self._answer_inbox = f"{HOST_INBOX}.{secrets.token_hex(11)}"
            await self.listen(f"{self._answer_inbox}.*", self._take_answer)
        reply = f"{self._answer_inbox}.{secrets.token_hex(8)}"
        answered: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._answers[reply] = answered
        try:
            await self.publish(subject, payload, reply, headers)
            async with asyncio.timeout(timeout_s):
                answer = await answered
        finally:
            del self._answers[reply]
        if answer.headers.get("Status") == NO_RESPONDERS_STATUS:
            raise nats.errors.NoRespondersError
        return answer

    async def publish_all(self, messages: Sequence[tuple[str, bytes]]) -> list[Unsendable]:
        """As `publish` for each subject and payload, at a third of the cost; returns refusals."""
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

    def keep_alive(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """See `ThreadSafeTransport.keep_alive`; while there is no connection, nothing happens."""
        if self.is_connected and self._transport is not None:
            commands, _ = settlement_commands(messages, self._max_payload)
            self._transport.keep_alive(commands)

    async def close(self) -> None:
        """As the library's, and close the socket of a failed connection attempt too."""
        await super().close()
        if self._transport is not None:
            self._transport.close()

    def drop_unsent(self) -> None:
        """Drop the unsent bytes: a server that reads nothing would hold `close` for ever."""
        self._pending = []
        self._pending_data_size = 0

    async def flush(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 - the library's
        """As the library's, but a cancelled flush ends."""
        with _heeding_cancellation():
            await super().flush(*arguments, **named)

    def _take_answer(self, answer: Message) -> None:
        answered = self._answers.get(answer.subject)
        if answered is not None and not answered.done():
            answered.set_result(answer)

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

    async def _send_ping(self, future: "asyncio.Future[bool] | None" = None) -> None:
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        self._pending.append(PING_PROTO)
        self._pending_data_size += len(PING_PROTO)
        # Without waiting for room: the ping must find out that a server reads nothing.
        if self._flush_queue is not None and not self._flush_queue.full():
            await self._flush_pending()

    async def _process_pong(self) -> None:
        """As the library's, but a PONG without a waiter does not end the reading.

        The waiter may have been cancelled or have timed out. Source: nats-py 2.16 `client.py`:
        there such a PONG ends `_read_loop`, and the connection reads nothing until the server
        counts as dead.
        """
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """As the library's, and apply a limit that was changed while connected."""
        await super()._process_info(info, initial_connection)
        if isinstance(most := info.get("max_payload"), int):
            self._max_payload = most

    async def _process_err(self, err_msg: str) -> None:
        """Connect again after any error; the library closes for good after all but two errors.

        A permissions violation is only logged: the server keeps the connection.
        """
        failure = ServerRefused(err_msg)
        self._err = failure
        if _PERMISSIONS in err_msg:
            log.warning("NATS refused an operation of this user", said=err_msg)
            return
        log.warning("NATS ends the connection", said=err_msg)
        self._count_refusal()
        await self._process_op_err(failure)

    async def _read_loop(self) -> None:
        """As the library's, but every failure leads to a new connection.

        After an unexpected exception the library stops reading and leaves the connection open.
        Source: nats-py 2.16 `client.py`.
        """
        while self._transport is not None and not (self.is_closed or self.is_reconnecting):
            try:
                if self._transport.at_eof():
                    raise nats.errors.UnexpectedEOF  # noqa: TRY301 - one way out for all of them
                await self._ps.parse(await self._transport.read(_READ_BYTES))
            except Exception as failure:  # noqa: BLE001 - what was not foreseen most of all
                await self._error_cb(failure)
                await self._process_op_err(failure)
                return

    async def _attempt_reconnect(self) -> None:
        """As the library's, but return only when connected."""
        while True:
            try:
                await super()._attempt_reconnect()
            except Exception:
                log.exception("Connecting to NATS failed unexpectedly, trying again")
                await asyncio.sleep(REFUSED_WAIT_CAP_S)
            else:
                return

    async def _connect_to_server(self, s: Srv) -> None:
        """Close the socket of the attempt before, then connect with a `ThreadSafeTransport`.

        After a refusal by the server the attempt waits first, longer after each refusal.
        """
        if self._transport is not None:
            self._transport.close()
        if self._refusals > 1:
            wait_s = RECONNECT_WAIT_S * 2 ** min(self._refusals, 10)
            await asyncio.sleep(min(REFUSED_WAIT_CAP_S, wait_s))
        in_memory = is_registered(s.uri.hostname)
        self._transport = MemoryTransport() if in_memory else ThreadSafeTransport()
        await super()._connect_to_server(s)

    async def _process_connect_init(self) -> None:
        """As the library's, but a server that refuses us, or says nothing, is a failed attempt."""
        try:
            with _heeding_cancellation():
                await super()._process_connect_init()
        except nats.errors.Error:
            self._count_refusal()
            raise
        except UnicodeDecodeError as failure:
            self._count_refusal()
            raise nats.errors.Error("nats: the server's answer cannot be read") from failure
        if not self.is_connected:
            # The library would go on, with tasks that would read the next connection too.
            for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
                if task is not None:
                    task.cancel()
            raise nats.errors.Error("nats: no PONG from the server")
        self._stands_since_s = time.monotonic()

    def _count_refusal(self) -> None:
        if self._stands_since_s and time.monotonic() - self._stands_since_s > STEADY_S:
            self._refusals = 0
        self._stands_since_s = 0.0
        self._refusals += 1


def _unreadable(subject: bytes, reply: bytes, payload: bytes, block: bytes) -> Message:
    """A message with every byte kept, and the reason why it is not a valid NATS message."""
    message = Message(
        subject.decode("utf-8", "surrogateescape"),
        payload,
        reply=reply.decode("utf-8", "surrogateescape"),
    )
    try:
        if block:
            message.headers = read_headers(block)
    except HeaderError as failure:
        message.unreadable = Unreadable(str(failure), block)
    else:
        message.unreadable = unreadable_subject(message.subject)
    return message


@contextmanager
def _heeding_cancellation() -> Iterator[None]:
    """Raise a cancellation that came at the same moment as the awaited result.

    Before Python 3.12 `asyncio.wait_for`, which the library uses, swallows such a cancellation: a
    loop that polls JetStream would never end. A host that was stopped a moment after its start hung
    in its drain, about once in twenty times.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        yield
    finally:
        if task and task.cancelling() > before:
            raise asyncio.CancelledError
