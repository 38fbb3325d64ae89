"""The listening socket, and the HTTP server with the gateway's limits."""

import errno
import socket
import uuid

import orjson
import structlog
from starlette.types import ASGIApp

from functions.http_gateway.boundary import MAX_HEAD_BYTES
from functions.http_gateway.client_addresses import ClientAddresses
from functions.http_gateway.connection_limits import ConnectionLimits
from functions.http_gateway.http1 import Server, ServerLimits
from functions.http_gateway.http1.reader import BadHttp
from functions.http_gateway.problems import ProblemError, title
from functions.http_gateway.settings import GatewaySettings
from runtime import ConfigError, Problem


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


def make_server(
    app: ASGIApp, settings: GatewaySettings, log: structlog.stdlib.BoundLogger
) -> Server:
    """The HTTP server with the limits of the settings."""
    addresses = ClientAddresses(settings.trusted_proxies)
    limits = ServerLimits(
        max_head_bytes=MAX_HEAD_BYTES,
        read_timeout_s=settings.read_timeout_s,
        write_timeout_s=settings.write_timeout_s,
        max_unread_bytes=settings.max_unread_bytes,
        drain_timeout_s=settings.read_timeout_s + settings.request_timeout_s,
    )
    connections = ConnectionLimits(
        settings.max_connections,
        settings.max_connections_per_address or max(1, settings.max_connections // 2),
        addresses.owner,
    )
    return Server(app, limits, connections, ProblemRefusals(), log)


class ProblemRefusals:
    """Problem details for connections on which no request could be read."""

    def overloaded(self) -> bytes:
        """The answer to a connection too many."""
        return _refusal(503, "OVERLOADED", "Too many connections are open.")

    def malformed(self, fault: BadHttp) -> bytes:
        """The answer to what is not HTTP."""
        if fault.is_too_large:
            return _refusal(
                431, "HEADERS_TOO_LARGE", f"Headers may have at most {MAX_HEAD_BYTES} bytes."
            )
        return _refusal(400, "MALFORMED_HTTP", "This is not HTTP/1.1.")


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
