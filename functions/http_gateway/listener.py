"""The listening socket and the HTTP server, with limits on connections and on slow clients."""

import asyncio
import contextlib
import errno
import math
import socket
import sys
import uuid
from collections.abc import Iterator

import h11
import orjson
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from functions.http_gateway.boundary import MAX_HEAD_BYTES
from functions.http_gateway.client_addresses import ClientAddresses
from functions.http_gateway.connection_limits import Connection, ConnectionLimits
from functions.http_gateway.problems import ProblemError, title
from functions.http_gateway.settings import GatewaySettings
from runtime import ConfigError, Problem

_HEADERS_TOO_LARGE = 431
_KEEP_ALIVE_S = 65
_LINGER_S = 5.0


def open_listener(host: str, port: int) -> socket.socket:
    """A bound socket.

    Raises:
        ConfigError: the port is taken or needs more rights, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as failure:
        raise _unusable(host, port, failure) from failure
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Listen at once: only that fails when another socket, bound with REUSEADDR, has the port.
        listener.listen(2048)
        listener.setblocking(False)
    except OSError as failure:
        listener.close()
        raise _unusable(host, port, failure) from failure
    return listener


def _unusable(host: str, port: int, failure: OSError) -> ConfigError:
    if isinstance(failure, socket.gaierror) or failure.errno == errno.EADDRNOTAVAIL:
        wrong = f"{host} is not an address of this machine"
        remedy = "set the gateway's `host` to one, such as 127.0.0.1"
    elif failure.errno == errno.EADDRINUSE:
        wrong = f"port {port} on {host} is taken by another program"
        remedy = "end that program, or set GATEWAY_PORT to a free port"
    elif failure.errno in {errno.EACCES, errno.EPERM}:
        wrong = f"port {port} on {host} needs rights that this user lacks"
        remedy = "set GATEWAY_PORT to a port above 1023"
    else:
        wrong = (
            f"port {port} on {host} cannot be opened ({errno.errorcode.get(failure.errno or 0)})"
        )
        remedy = "set GATEWAY_PORT to a port that can be opened"
    return ConfigError([Problem("GATEWAY_PORT", "", wrong, remedy)])


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: the host handles signals."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=type(
                    "GatewayProtocol",
                    (_BoundedProtocol,),
                    {
                        "limits": _limits(settings),
                        "head_timeout_s": settings.read_timeout_s,
                        "write_timeout_s": settings.write_timeout_s,
                    },
                ),
                ws="none",
                lifespan="off",
                loop="none",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=math.ceil(
                    settings.read_timeout_s + settings.request_timeout_s
                ),
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the process's signal handlers as they are."""
        yield

    def abandon(self) -> None:
        """Close the listener and abort every connection."""
        for listening in getattr(self, "servers", ()):
            listening.close()
        for connection in list(self.server_state.connections):
            if transport := getattr(connection, "transport", None):
                transport.abort()


def _limits(settings: GatewaySettings) -> ConnectionLimits:
    addresses = ClientAddresses(settings.trusted_proxies)
    return ConnectionLimits(
        settings.max_connections,
        settings.max_connections_per_address or max(1, settings.max_connections // 2),
        addresses.is_proxy,
    )


class _BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol, with limits on connections and on the time of each part.

    uvicorn itself has no limit on the time until the first byte, until the end of the headers, and
    until a client reads its answer.
    """

    limits: ConnectionLimits
    head_timeout_s: float
    write_timeout_s: float
    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._connection = Connection(self.client[0] if self.client else "", self._evict)
        if not self.limits.admit(self._connection):
            transport.write(_refusal(503, "OVERLOADED", "Too many connections are open."))
            self.shutdown()
            self.loop.call_later(_LINGER_S, transport.abort)
            return
        self._arm_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self.limits.remove(self._connection)
        self._disarm_head_timer()
        self._disarm_write_timer()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer the request in progress of a client that has closed its side alone."""
        if not self._is_answering or self.cycle.more_body:
            return False
        self.cycle.keep_alive = False
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._disarm_write_timer()
        self._write_timer = self.loop.call_later(self.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._disarm_write_timer()
        super().resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note_activity()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        self._note_activity()
        if self.transport.is_closing() or not self._is_waiting_for_more:
            self._disarm_head_timer()
        elif self._head_timer is None:
            self._arm_head_timer()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self.loop.call_later(_LINGER_S, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Refuse malformed HTTP. uvicorn calls this while it handles the parser's exception."""
        failure = sys.exc_info()[1]
        if self._is_answering:
            # The rest of the body is malformed: tell its reader that the client disconnected.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not self._is_answering or not self.cycle.response_started:
            too_long = isinstance(failure, h11.RemoteProtocolError) and (
                failure.error_status_hint == _HEADERS_TOO_LARGE
            )
            refusal = (
                _refusal(
                    431, "HEADERS_TOO_LARGE", f"Headers may have at most {MAX_HEAD_BYTES} bytes."
                )
                if too_long
                else _refusal(400, "MALFORMED_HTTP", "This is not HTTP/1.1.")
            )
            self.transport.write(refusal)
        self.transport.close()
        self.loop.call_later(_LINGER_S, self.transport.abort)

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _is_waiting_for_more(self) -> bool:
        """Whether part of a head has arrived, or the rest of a refused body is still to come."""
        if self._is_answering:
            return False
        return self.conn.their_state is h11.SEND_BODY or bool(self.conn.trailing_data[0])

    def _note_activity(self) -> None:
        if self.transport.is_closing():
            return
        if self._is_answering:
            self.limits.set_busy(self._connection)
        else:
            self.limits.set_idle(self._connection)

    def _evict(self) -> None:
        """Make room for another connection: no request is in progress on this one."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # The client does not read; closing would wait for it.
        else:
            self.transport.close()

    def _disarm_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _arm_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout_s, self._on_slow_head)

    def _disarm_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_slow_head(self) -> None:
        self._head_timer = None
        self.transport.abort()


def _refusal(status: int, code: str, detail: str) -> bytes:
    """A whole response, for a connection on which no request could be read."""
    problem = ProblemError(status, code, detail)
    request_id = uuid.uuid4().hex
    body = orjson.dumps(problem.document(instance="", request_id=request_id))
    headers = {
        "Content-Type": "application/problem+json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **problem.headers,
    }
    lines = [f"HTTP/1.1 {status} {title(status)}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body
