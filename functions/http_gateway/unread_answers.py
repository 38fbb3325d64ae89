"""Bounds the bytes of answers that clients do not read. No input or output."""

from collections.abc import Callable, Hashable


class UnreadAnswers:
    """Bytes that wait in this process until their clients read.

    Beyond the bound the clients that have not read for the longest time are cut off.

    Args:
        most_bytes: of all clients together.
    """

    def __init__(self, most_bytes: int) -> None:
        self._left_bytes = most_bytes
        # In the order in which the clients stopped to read.
        self._held: dict[Hashable, tuple[int, Callable[[], None]]] = {}

    def hold(self, client: Hashable, size_bytes: int, cut_off: Callable[[], None]) -> None:
        """Count the bytes of a client that does not read.

        Args:
            client: whose they are; it holds nothing yet.
            size_bytes: what waits for it.
            cut_off: ends its connection, and drops what waits.
        """
        self._held[client] = size_bytes, cut_off
        self._left_bytes -= size_bytes
        while self._left_bytes < 0:
            longest = next(iter(self._held))
            cut = self._held[longest][1]
            self.release(longest)
            cut()

    def release(self, client: Hashable) -> None:
        """Note that a client has read, or is gone."""
        size_bytes, _ = self._held.pop(client, (0, None))
        self._left_bytes += size_bytes


__all__ = ["UnreadAnswers"]
