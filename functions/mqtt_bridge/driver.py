"""Drives paho-mqtt's client by the event loop: no thread, and reading that can be paused.

Source: paho-mqtt, "External event loop".
"""

import asyncio
import ssl
from typing import Protocol

from paho.mqtt.client import Client

from functions.mqtt_bridge.client import BridgeClient

_LOOK_S = 1.0
_PACKETS_AT_ONCE = 64
"""Packets that are read before other tasks have their turn."""


class SocketLike(Protocol):
    """What the client uses of a socket, which may be one of TLS."""

    def fileno(self) -> int:
        """The file descriptor."""

    def close(self) -> None:
        """Close it."""


class Driver:
    """Reads and writes for one connected client."""

    def __init__(self, client: BridgeClient) -> None:
        self._loop = asyncio.get_running_loop()
        self._client = client
        self._socket: SocketLike | None = None
        self._is_paused = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        """Whether the client has a socket."""
        return self._socket is not None

    def start(self) -> bool:
        """Drive the client from here on; False when it has no socket any more."""
        client = self._client
        self._socket = client.socket()
        if self._socket is None:
            return False
        client.on_socket_close = self._on_close
        client.on_socket_register_write = self._on_register_write
        client.on_socket_unregister_write = self._on_unregister_write
        self._loop.add_reader(self._socket, self._read)
        if client.want_write():
            self._loop.add_writer(self._socket, client.loop_write)
        self._look()
        return True

    def pause(self) -> None:
        """Read no further, so that the broker has to wait."""
        if not self._is_paused and self._socket is not None:
            self._is_paused = True
            self._loop.remove_reader(self._socket)

    def resume(self) -> None:
        """Read again."""
        if self._is_paused and self._socket is not None:
            self._is_paused = False
            self._loop.add_reader(self._socket, self._read)
            # TLS may have decrypted more than was read; the socket tells nothing of that.
            self._loop.call_soon(self._read)

    def stop(self) -> None:
        """Send what is left, as far as the socket takes it, and close."""
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._client.loop_write()
        if self._socket is not None:
            self._release().close()
            self._client.loop_read()  # It finds the closed socket.

    def _read(self) -> None:
        for _ in range(_PACKETS_AT_ONCE):
            if self._is_paused or self._socket is None:
                return
            before = self._client.packets
            self._client.loop_read()
            if self._client.packets == before:
                break
        # The loop calls again for what the socket has, but not for what TLS has decrypted already.
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            self._loop.call_soon(self._read)

    def _look(self) -> None:
        """Ask whether the broker is there, and find out that it is not."""
        if self._is_paused:
            self._client.expect_no_answer()
        self._client.loop_misc()
        if self._socket is not None:
            self._timer = self._loop.call_later(_LOOK_S, self._look)

    def _release(self) -> SocketLike:
        held, self._socket = self._socket, None
        assert held is not None  # noqa: S101 - callers have looked
        self._loop.remove_reader(held)
        self._loop.remove_writer(held)
        return held

    # paho defines the signatures.
    def _on_close(self, _client: Client, _data: object, _closed: SocketLike) -> None:
        if self._socket is not None:
            self._release()

    def _on_register_write(self, client: Client, _data: object, found: SocketLike) -> None:
        self._loop.add_writer(found, client.loop_write)

    def _on_unregister_write(self, _client: Client, _data: object, found: SocketLike) -> None:
        if self._socket is not None:
            self._loop.remove_writer(found)


__all__ = ["Driver"]
