"""Checks the lengths of a PostgreSQL server's messages before a client library reads them.

asyncpg reads a message whose length is less than that of its own field for ever, and with it stands
the event loop.

Source: PostgreSQL, "Message Formats": a byte of type, and four of length that count themselves.
"""

_HEAD_BYTES = 5
_LEAST_LENGTH = 4


class PostgresFrames:
    """Follows the messages of one connection."""

    def __init__(self) -> None:
        self._head = b""
        self._left_bytes = 0

    def accept(self, data: bytes) -> bool:
        """Whether the next bytes may be passed on; False is final."""
        at = 0
        while at < len(data):
            if self._left_bytes:
                step = min(self._left_bytes, len(data) - at)
                self._left_bytes -= step
                at += step
                continue
            missing = _HEAD_BYTES - len(self._head)
            self._head += data[at : at + missing]
            at += missing
            if len(self._head) == _HEAD_BYTES:
                length = int.from_bytes(self._head[1:], "big", signed=True)
                if length < _LEAST_LENGTH:
                    return False
                self._head, self._left_bytes = b"", length - _LEAST_LENGTH
        return True


__all__ = ["PostgresFrames"]
