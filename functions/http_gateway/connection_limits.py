"""Limits open connections, in all and by address, and chooses the idlest to make room."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Connection:
    """One open connection.

    Attributes:
        address: its client's address.
        evict: closes it; called while no request is in progress on it.
    """

    address: str
    evict: Callable[[], None]


@dataclass(slots=True)
class ConnectionLimits:
    """The open connections of a gateway.

    A new connection beyond a limit takes the place of the one that has been without a request for
    the longest time: of its own address if that has too many, else of any. A connection that has
    sent only a part of a head is without a request.

    Attributes:
        max_connections: how many may be open.
        max_per_address: how many one address may have open; trusted proxies may have all.
        is_exempt: whether `max_per_address` does not count for an address.
    """

    max_connections: int
    max_per_address: int
    is_exempt: Callable[[str], bool]
    _open: int = 0
    _by_address: Counter[str] = field(default_factory=Counter)
    _idle: dict[Connection, None] = field(default_factory=dict)

    def admit(self, connection: Connection) -> bool:
        """Count a new connection; False when nothing idle could make room for it."""
        address = connection.address
        is_admitted = True
        if self._by_address[address] >= self.max_per_address and not self.is_exempt(address):
            is_admitted = self._evict(address)
        elif self._open >= self.max_connections:
            is_admitted = self._evict(None)
        self._open += 1
        self._by_address[address] += 1
        if is_admitted:
            self._idle[connection] = None
        return is_admitted

    def set_idle(self, connection: Connection) -> None:
        """Note that no request is in progress, since now or an earlier call."""
        self._idle.setdefault(connection)

    def set_busy(self, connection: Connection) -> None:
        """Note that a request is in progress."""
        self._idle.pop(connection, None)

    def remove(self, connection: Connection) -> None:
        """Forget a closed connection."""
        self._idle.pop(connection, None)
        self._open -= 1
        self._by_address[connection.address] -= 1
        if not self._by_address[connection.address]:
            del self._by_address[connection.address]

    def _evict(self, address: str | None) -> bool:
        # A dict keeps the order in which connections became idle.
        for idle in self._idle:
            if address is None or idle.address == address:
                del self._idle[idle]
                idle.evict()
                return True
        return False
