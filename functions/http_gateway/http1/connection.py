"""One client's connection: reads requests ahead, lets them be answered one after the other."""

import asyncio
from collections import deque
from typing import Protocol, cast

from functions.http_gateway.connection_limits import Connection, ConnectionLimits
from functions.http_gateway.http1.exchange import Exchange
from functions.http_gateway.http1.reader import BadHttp, Head, RequestReader
from functions.http_gateway.unread_answers import UnreadAnswers

NEVER = float("inf")
LINGER_S = 5.0
"""How long a client may go on sending after the last response, which it might else never get: a
socket that is closed with unread bytes resets the connection."""

_KEEP_ALIVE_S = 65.0
# Of so many bytes the requests are read ahead. The rest waits unread until these are answered.
_SLICE_BYTES = 4096


class Refusals(Protocol):
    """Whole responses for connections on which no request could be read."""

    def overloaded(self) -> bytes:
        """The answer to a connection too many."""

    def malformed(self, fault: BadHttp) -> bytes:
        """The answer to what is not HTTP."""


class Hub(Protocol):
    """What all connections of a server share."""

    limits: ConnectionLimits
    unread: UnreadAnswers
    refusals: Refusals
    read_timeout_s: float
    write_timeout_s: float
    is_draining: bool
    date: bytes
    connections: "set[HttpConnection]"

    def start(self, exchange: Exchange) -> None:
        """Let the application answer a request."""

    def forget(self, connection: "HttpConnection") -> None:
        """Forget a closed connection."""


class HttpConnection(asyncio.Protocol):
    """Does input and output of one client.

    The server closes the connection at `read_deadline_s` and at `write_deadline_s`, times of the
    loop's clock.
    """

    def __init__(self, hub: Hub, loop: asyncio.AbstractEventLoop, max_head_bytes: int) -> None:
        self.read_deadline_s = self.write_deadline_s = NEVER
        self._hub = hub
        self._loop = loop
        self._reader = RequestReader(self, max_head_bytes)
        self._answering: Exchange | None = None
        self._reading: Exchange | None = None
        self._waiting: deque[Exchange] = deque()
        self._unread = b""
        self._is_paused = self._is_closing = self._has_ended = False
        # Whether no request has come yet; whether a body is dropped, as its request is answered;
        # whether bytes came after the last request.
        self._is_new, self._is_dropping, self._has_surplus = True, False, False
        self._is_admitted = False
        self._fault: BadHttp | None = None
        self._may_write: asyncio.Event | None = None

    @property
    def date(self) -> bytes:
        """The header `Date`."""
        return self._hub.date

    # The transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admit the connection, or refuse it and let it read why."""
        # Not `isinstance`: uvloop's transports are no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        own = transport.get_extra_info("sockname")
        self._client = tuple(peer[:2]) if peer else None
        self._server = tuple(own[:2]) if own else None
        self._place = Connection(self._hub.limits.owner_of(peer[0] if peer else ""), self._evict)
        self._hub.connections.add(self)
        self._is_admitted = self._hub.limits.admit(self._place)
        if self._is_admitted:
            self.read_deadline_s = self._loop.time() + self._hub.read_timeout_s
        else:
            self._transport.write(self._hub.refusals.overloaded())
            self._close_slowly()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application, and forget the connection."""
        del exc
        self._is_closing = True
        self._hub.forget(self)
        self._hub.limits.remove(self._place)
        self._break_off()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Read requests; what may not be read yet is kept."""
        if self._is_closing:
            return
        if self._reader.is_finished:
            self._has_surplus = True
        elif self._is_paused:
            self._unread += data
        else:
            self._read(data)

    def eof_received(self) -> bool:
        """Answer the requests of a client that has closed its side alone."""
        if self._reading is not None and self._reading is not self._answering:
            self._waiting.remove(self._reading)  # Its rest will never come.
            self._reading = None
        if self._is_closing or self._answering is None or self._reading is not None:
            return False
        self._has_ended = True
        for exchange in (self._answering, *self._waiting):
            exchange.end_input()
        return True

    def pause_writing(self) -> None:
        """Give the client a limited time to read what it was sent."""
        self.write_deadline_s = self._loop.time() + self._hub.write_timeout_s
        self._may_write = asyncio.Event()
        size_bytes = self._transport.get_write_buffer_size()
        self._hub.unread.hold(self, size_bytes, self._transport.abort)
        self._hub.limits.set_idle(self._place)

    def resume_writing(self) -> None:
        """Let the application go on."""
        self.write_deadline_s = NEVER
        if self._may_write is not None:
            self._hub.unread.release(self)
            self._may_write.set()
            self._may_write = None
            self._note_work()

    # The reader's calls

    def begin(self, head: Head) -> None:
        """Answer a request, or queue it behind the one that is being answered."""
        head.scope["client"], head.scope["server"] = self._client, self._server
        self._is_new = False
        exchange = self._reading = Exchange(self, head)
        if self._answering is None:
            self._answer(exchange)
        else:
            self._waiting.append(exchange)
            self._pause()

    def add_body(self, part: bytes) -> None:
        """Pass a part of a body on."""
        if (exchange := self._reading) is not None:
            exchange.add_body(part)
            if exchange.is_full:
                self._pause()

    def end(self) -> None:
        """Note the end of a body."""
        self._is_dropping = False
        if self._reading is not None:
            self._reading.end_body()
            self._reading = None
            self._note_work()

    # The exchange's calls

    def write(self, data: bytes) -> None:
        """Send bytes, unless the client is gone."""
        if not self._transport.is_closing():
            self._transport.write(data)

    async def drain(self) -> None:
        """Return when the client has read enough for more to be written."""
        if self._may_write is not None:
            await self._may_write.wait()

    def take_more(self) -> None:
        """Read on after a pause."""
        if not self._is_paused or self._waiting or self._fault is not None or self._is_closing:
            return
        self._is_paused = False
        unread, self._unread = self._unread, b""
        if unread:
            self._read(unread)
        if not self._is_paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def finish(self, exchange: Exchange) -> None:
        """Go on with the next request, or end the connection."""
        if exchange is not self._answering:
            return
        self._answering = None
        if self._reading is exchange:
            self._reading, self._is_dropping = None, True
        if self._is_closing:
            return
        if not exchange.is_complete:
            self._transport.abort()
        elif not exchange.keeps_alive or self._hub.is_draining:
            self._close()
        else:
            self._go_on()

    # The server's calls

    def drain_out(self) -> None:
        """Close when the requests that have begun are answered."""
        if self._answering is None and not self._is_closing:
            self._close()

    def abort(self) -> None:
        """Close at once; unsent bytes are dropped."""
        self._transport.abort()

    def _read(self, data: bytes) -> None:
        was_within = self._reader.is_within
        for start in range(0, len(data), _SLICE_BYTES):
            if self._is_paused:
                self._unread = data[start:]
                break
            if self._reader.is_finished:
                self._has_surplus = True
                break
            try:
                self._reader.feed(data[start : start + _SLICE_BYTES])
            except BadHttp as fault:
                self._take_fault(fault)
                return
        if self._answering is None and was_within != self._reader.is_within:
            self._rest()

    def _answer(self, exchange: Exchange) -> None:
        self._answering = exchange
        self.read_deadline_s = NEVER
        if exchange.is_whole:
            self._note_work()
        self._hub.start(exchange)

    def _note_work(self) -> None:
        """Give the connection its place as long as it does not wait for its client.

        Who does not send the rest of a body, or does not read, makes room for others.
        """
        exchange = self._answering
        if exchange is not None and exchange.is_whole and self._may_write is None:
            self._hub.limits.set_busy(self._place)

    def _go_on(self) -> None:
        """Answer the next request that was read ahead, or wait for one."""
        if self._waiting:
            self._answer(self._waiting.popleft())
        elif self._fault is not None:
            self._refuse(self._fault)
        elif self._has_ended:
            self._close()
        self.take_more()
        if self._answering is None and not self._is_closing:
            self._rest()

    def _rest(self) -> None:
        """No request is being answered: the client has a limited time to send one, or its rest."""
        self._hub.limits.set_idle(self._place)
        if self._is_new:
            return  # The time for its first head runs since it was opened.
        allowed_s = self._hub.read_timeout_s if self._reader.is_within else _KEEP_ALIVE_S
        self.read_deadline_s = self._loop.time() + allowed_s

    def _pause(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def _take_fault(self, fault: BadHttp) -> None:
        """Refuse what cannot be read, after the answers to what could be."""
        if self._reading is not None and self._reading is not self._answering:
            self._waiting.remove(self._reading)  # The last, of which the body is malformed.
            self._reading = None
        if self._answering is None or self._reading is self._answering:
            self._refuse(fault)
        else:
            self._fault = fault
            self._pause()

    def _refuse(self, fault: BadHttp) -> None:
        is_answered = self._answering is not None and self._answering.is_started
        if not is_answered and not self._is_dropping:
            self.write(self._hub.refusals.malformed(fault))
        self._break_off()
        self._close_slowly()

    def _break_off(self) -> None:
        for exchange in (self._answering, *self._waiting):
            if exchange is not None:
                exchange.break_off()
        self._waiting.clear()
        self._reading = None

    def _close(self) -> None:
        if self._reader.is_within or self._unread or self._has_surplus:
            self._close_slowly()
        else:
            self._is_closing = True
            self._limit_closing()
            self._transport.close()

    def _close_slowly(self) -> None:
        """Close when the client has closed, or when its time is up; what it sends is dropped."""
        self._is_closing = True
        self._break_off()
        self._unread = b""
        self._limit_closing()
        if self._has_ended:
            self._transport.close()
        elif not self._transport.is_closing():
            self._transport.write_eof()
            if self._is_paused:
                self._transport.resume_reading()

    def _limit_closing(self) -> None:
        limit_s = max(LINGER_S, self._hub.write_timeout_s)
        self.read_deadline_s = self._loop.time() + limit_s
        if self._is_admitted:
            self._hub.limits.set_idle(self._place)

    def _evict(self) -> None:
        """Make room for another connection: no request is in progress on this one."""
        self._is_closing = True
        if self._transport.get_write_buffer_size():
            self._transport.abort()  # The client does not read; closing would wait for it.
        else:
            self._transport.close()


__all__ = ["LINGER_S", "NEVER", "HttpConnection", "Hub", "Refusals"]
