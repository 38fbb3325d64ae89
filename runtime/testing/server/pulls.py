"""Pull requests that wait at a consumer in memory."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from runtime.testing.server.errors import NotModelled
from runtime.testing.server.times import WallClock

_FIELDS = {"batch", "expires", "no_wait", "max_bytes", "idle_heartbeat"}

Send = Callable[[str, bytes], None]
"""Sends a status, which is a header block, to a reply subject."""


@dataclass(slots=True, eq=False)
class PullRequest:
    """One request that is served.

    Attributes:
        left: how many more messages it asks for.
        bytes_left: how many more bytes; 0 for no limit.
        heard_ns: when it got its last message or heartbeat.
    """

    reply: str
    left: int
    bytes_left: int
    heartbeat_ns: int
    heard_ns: int
    expiry: asyncio.TimerHandle | None = None
    heartbeat: asyncio.TimerHandle | None = None

    def cancel(self) -> None:
        """End its timers."""
        for timer in (self.expiry, self.heartbeat):
            if timer is not None:
                timer.cancel()


class PullQueue:
    """The requests of one consumer, served in turn."""

    def __init__(self, clock: WallClock, send: Send, has_interest: Callable[[str], bool]) -> None:
        self._clock = clock
        self._send = send
        self._has_interest = has_interest
        self._waiting: deque[PullRequest] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, reply: str, body: Mapping[str, Any]) -> PullRequest:
        """Add a request.

        Raises:
            NotModelled: it has a field that is not modelled.
        """
        for name, value in body.items():
            if name not in _FIELDS and value:
                raise NotModelled(f"the field {name} of a pull request")
        now_ns = self._clock.now_ns()
        request = PullRequest(
            reply,
            body.get("batch") or 1,
            body.get("max_bytes") or 0,
            body.get("idle_heartbeat") or 0,
            now_ns,
        )
        if expires := body.get("expires"):
            request.expiry = self._clock.at_ns(now_ns + expires, lambda: self.expire(request))
        if request.heartbeat_ns:
            self._beat_later(request)
        self._waiting.append(request)
        return request

    def next(self, size_bytes: int) -> PullRequest | None:
        """The request that gets the next message; moves it to the end of the queue.

        A request whose limit is smaller than the message ends with a status.
        """
        while self._waiting:
            request = self._waiting.popleft()
            if not self._has_interest(request.reply):
                request.cancel()
                continue
            if request.bytes_left and size_bytes > request.bytes_left:
                self._end(request, "409 Message Size Exceeds MaxBytes")
                continue
            request.heard_ns = self._clock.now_ns()
            request.left -= 1
            if request.bytes_left:
                request.bytes_left -= size_bytes
                if not request.bytes_left:
                    request.left = 0
            if request.left > 0:
                self._waiting.append(request)
            else:
                request.cancel()
            return request
        return None

    def has_any(self) -> bool:
        """Whether a request waits whose client still listens."""
        for request in [each for each in self._waiting if not self._has_interest(each.reply)]:
            request.cancel()
            self._waiting.remove(request)
        return bool(self._waiting)

    def expire(self, request: PullRequest, status: str = "408 Request Timeout") -> None:
        """End a request that waits."""
        if request in self._waiting:
            self._waiting.remove(request)
            self._end(request, status)

    def close(self, status: str = "") -> None:
        """End all requests, with a status if one is given."""
        while self._waiting:
            request = self._waiting.popleft()
            if status:
                self._end(request, status)
            request.cancel()

    def _end(self, request: PullRequest, status: str) -> None:
        request.cancel()
        pending = (
            f"Nats-Pending-Messages: {request.left}\r\nNats-Pending-Bytes: {request.bytes_left}"
        )
        self._send(request.reply, f"NATS/1.0 {status}\r\n{pending}\r\n\r\n".encode())

    def _beat_later(self, request: PullRequest) -> None:
        at_ns = request.heard_ns + request.heartbeat_ns
        request.heartbeat = self._clock.at_ns(at_ns, lambda: self._beat(request))

    def _beat(self, request: PullRequest) -> None:
        now_ns = self._clock.now_ns()
        if now_ns - request.heard_ns >= request.heartbeat_ns:
            request.heard_ns = now_ns
            self._send(request.reply, b"NATS/1.0 100 Idle Heartbeat\r\n\r\n")
        self._beat_later(request)


__all__ = ["PullQueue", "PullRequest"]
