"""Opens a TCP connection on a non-blocking socket, and TLS on top of it."""

import asyncio
import socket
import ssl
from collections.abc import Callable


async def connected(host: str, port: int) -> socket.socket:
    """A socket that is connected to one of the host's addresses, tried in their order.

    Raises:
        OSError: no address accepted the connection; the error of the last one.
    """
    loop = asyncio.get_running_loop()
    failure = OSError("the name has no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(
        host, port, type=socket.SOCK_STREAM
    ):
        tried = socket.socket(family, kind, protocol)
        try:
            tried.setblocking(False)
            tried.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(tried, address)
        except OSError as refusal:
            tried.close()
            failure = refusal
        except BaseException:
            tried.close()
            raise
        else:
            return tried
    raise failure


async def secured(plain: socket.socket, context: ssl.SSLContext, name: str | None) -> ssl.SSLSocket:
    """Start TLS on the socket; the plain socket is closed, whether that succeeds or not.

    Raises:
        OSError: the connection is lost, or the handshake failed.
    """
    try:
        # Wrapping a socket that was reset meanwhile would leave an unclosed socket to the garbage
        # collector.
        plain.getpeername()
        wrapped = context.wrap_socket(plain, server_hostname=name, do_handshake_on_connect=False)
    except BaseException:
        plain.close()
        raise
    try:
        await _shake_hands(wrapped)
    except BaseException:
        wrapped.close()
        raise
    return wrapped


async def _shake_hands(wrapped: ssl.SSLSocket) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            return wrapped.do_handshake()
        except ssl.SSLWantReadError:
            await _until(wrapped, loop.add_reader, loop.remove_reader)
        except ssl.SSLWantWriteError:
            await _until(wrapped, loop.add_writer, loop.remove_writer)


async def _until(
    ready: socket.socket, add: Callable[..., None], remove: Callable[..., bool]
) -> None:
    """Wait until the socket can be read, or written."""
    event = asyncio.Event()
    add(ready, event.set)
    try:
        await event.wait()
    finally:
        remove(ready)
