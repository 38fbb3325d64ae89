"""One HTTP/1.1 connection, which carries one request at a time.

The endpoint is not trusted. Every answer is bounded: time and bytes of its head, number of interim
answers, time and bytes of its body. A connection is used again only after an answer that ended
exactly where it said: bytes after that end would be read as the next request's answer.
"""

import asyncio
import contextvars
import select
from dataclasses import dataclass, field
from typing import cast

import httptools

from functions.outbound.transport.faults import (
    AnswerTimeout,
    ConnectionLost,
    Fault,
    NotHttp,
)

MAX_HEAD_BYTES = 65_536
MAX_INTERIM_ANSWERS = 10
# The rest of a longer body is not read: a new connection costs less than its transfer.
MAX_BODY_BYTES = 65_536
BODY_S = 2.0

_KEPT_HEADERS = frozenset({b"content-encoding", b"retry-after"})
_FINAL = 200
_SWITCHING_PROTOCOLS = 101


@dataclass(slots=True)
class Answer:
    """An endpoint's answer.

    Attributes:
        headers: the ones that matter to a delivery, by name in lower case; of a repeated one the
            last value.
        body: its beginning.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Connection(asyncio.Protocol):
    """Sends requests and reads their answers.

    Args:
        excerpt_bytes: how much of a body is kept.

    Attributes:
        is_used: whether a request was answered on this connection before.
        has_answer_bytes: whether any byte of the present request's answer has arrived.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, excerpt_bytes: int) -> None:
        self.is_used = False
        self.has_answer_bytes = False
        self._loop = loop
        self._excerpt_bytes = excerpt_bytes
        self._transport: asyncio.Transport | None = None
        self._poll: select.poll | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._answered: asyncio.Future[Answer] | None = None
        # One for all exchanges: it looks at its time whether the present one is due.
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = self._due_at_s = 0.0
        self._is_closed = False
        self._begin_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # Not `isinstance`: uvloop's transports are no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._poll = select.poll()
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the answer that is being read: complete if its end was not told otherwise."""
        del exc
        self._is_closed = True
        self._cancel_timer()
        self._end_of_input()

    def eof_received(self) -> None:
        """The same; a half-closed connection is not kept."""
        self._is_closed = True
        self._end_of_input()

    @property
    def is_reusable(self) -> bool:
        """Whether the next request may be sent: open, and no byte has come that nobody asked for.

        The socket itself is asked, because the event loop may not have read it yet.
        """
        return not (self._is_closed or self._poll is None or self._poll.poll(0))

    @property
    def is_open(self) -> bool:
        """Whether the connection may be kept; `is_reusable` tells when it is to be used."""
        return not self._is_closed

    async def exchange(self, request: bytes, deadline_s: float) -> Answer:
        """Send a request and return its answer.

        Args:
            request: head and body.
            deadline_s: time of the loop's clock at which a status must have come.

        Raises:
            Fault: no answer.
        """
        if self._transport is None or self._is_closed:
            raise ConnectionLost
        self._begin_reading()
        answered: asyncio.Future[Answer] = self._loop.create_future()
        self._answered = answered
        self._set_due(deadline_s)
        self._transport.write(request)
        try:
            return await answered
        finally:
            self._end_exchange()

    def close(self) -> None:
        """Close at once; unsent bytes are dropped."""
        self._is_closed = True
        self._cancel_timer()
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read a part of the answer; bytes that belong to no request close the connection."""
        parser = self._parser
        if parser is None or self._answered is None or self._answered.done():
            self.close()
            return
        self.has_answer_bytes = True
        try:
            if not self._has_head:
                data = self._feed_head(parser, data)
            if data and self._has_head:
                self._feed_body(parser, data)
        except httptools.HttpParserUpgrade:
            self._finish(is_complete=False)
        except (httptools.HttpParserError, NotHttp):
            # Whatever follows a status that is complete is only a reason not to read on.
            if self._has_head:
                self._finish(is_complete=False)
            else:
                self._fail(NotHttp())
        if self._has_head and not self._answered.done():
            self._go_on_with_body()

    def on_message_begin(self) -> None:
        """Count the answers: after the final one, these are surplus bytes."""
        if self._is_complete:
            self._has_surplus = True
            raise NotHttp
        self._answers += 1
        if self._answers > MAX_INTERIM_ANSWERS:
            raise NotHttp

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the headers that matter."""
        if (key := name.lower()) in _KEPT_HEADERS:
            self._answer.headers[key.decode("ascii")] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Take the status, unless the answer is an interim one."""
        parser = self._parser
        if parser is None:
            return
        status = parser.get_status_code()
        if status >= _FINAL or status == _SWITCHING_PROTOCOLS:
            self._answer.status = status
            self._has_head = True
            self._is_persistent = parser.should_keep_alive()
        else:
            self._answer.headers.clear()

    def on_body(self, part: bytes) -> None:
        """Keep the beginning of the body, and count the rest."""
        self._body_bytes += len(part)
        room = self._excerpt_bytes - len(self._body)
        if room > 0:
            self._body += part[:room]

    def on_message_complete(self) -> None:
        """The end of the final answer."""
        self._is_complete = self._has_head

    def _begin_reading(self) -> None:
        self._answer = Answer()
        self._body = bytearray()
        self._head_bytes = self._body_bytes = self._raw_body_bytes = self._answers = 0
        self._has_head = self._is_complete = self._has_surplus = False
        self._is_persistent = self._has_body_timer = False
        self.has_answer_bytes = False
        self._parser = httptools.HttpResponseParser(self)

    def _feed_head(self, parser: httptools.HttpResponseParser, data: bytes) -> bytes:
        """Feed what a head may have at most; return the rest, which belongs to the body."""
        room = MAX_HEAD_BYTES - self._head_bytes
        self._head_bytes += len(data)
        parser.feed_data(data[:room])
        rest = data[room:]
        if rest and not self._has_head:
            raise NotHttp
        return rest

    def _feed_body(self, parser: httptools.HttpResponseParser, data: bytes) -> None:
        if self._is_complete:
            self._has_surplus = True
        else:
            # What is between the chunks of a body, and after them, counts too.
            self._raw_body_bytes += len(data)
            parser.feed_data(data)

    def _go_on_with_body(self) -> None:
        if self._is_complete:
            self._finish(is_complete=True)
        elif max(self._body_bytes, self._raw_body_bytes) > MAX_BODY_BYTES:
            self._finish(is_complete=False)
        elif not self._has_body_timer:
            self._has_body_timer = True
            self._set_due(self._loop.time() + BODY_S)

    def _time_is_up(self) -> None:
        if self._has_head:
            # The status alone decides: a body that stalls or breaks off is no failure.
            self._finish(is_complete=False)
        else:
            self._fail(AnswerTimeout())

    def _end_of_input(self) -> None:
        if self._answered is None or self._answered.done():
            return
        if self._has_head:
            self._finish(is_complete=False)
        else:
            self._fail(ConnectionLost())

    def _finish(self, *, is_complete: bool) -> None:
        transport = self._transport
        is_kept = (
            is_complete
            and not self._has_surplus
            and self._is_persistent
            and transport is not None
            and transport.get_write_buffer_size() == 0
        )
        if not is_kept:
            self.close()
        self._answer.body = bytes(self._body)
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(self._answer)

    def _fail(self, fault: Fault) -> None:
        self.close()
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(fault)

    def _set_due(self, at_s: float) -> None:
        self._due_at_s = at_s
        if self._timer is None or at_s < self._timer_at_s:
            self._start_timer(at_s)

    def _start_timer(self, at_s: float) -> None:
        self._cancel_timer()
        self._timer_at_s = at_s
        # In no call's context, which the timer of an idle connection would keep alive.
        self._timer = self._loop.call_at(at_s, self._look_at_time, context=contextvars.Context())

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_at_time(self) -> None:
        self._timer = None
        if self._answered is None:
            return
        if self._timer_at_s < self._due_at_s:
            self._start_timer(self._due_at_s)
        else:
            self._time_is_up()

    def _end_exchange(self) -> None:
        if self._answered is not None and self._answered.cancelled():
            self.close()
        self._parser, self._answered = None, None
        self.is_used = True


__all__ = [
    "BODY_S",
    "MAX_BODY_BYTES",
    "MAX_HEAD_BYTES",
    "MAX_INTERIM_ANSWERS",
    "Answer",
    "Connection",
]
