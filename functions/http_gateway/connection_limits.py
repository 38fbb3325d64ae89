"""Limits open connections, in all and by client, and chooses the idlest to make room."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Connection:
    """One open connection.

    Attributes:
        owner: whose it is; the same for all addresses of a client. Empty for a trusted proxy, which
            may have as many as it likes.
        evict: closes it; called while it waits for its client.
    """

    owner: str
    evict: Callable[[], None]


@dataclass(slots=True)
class ConnectionLimits:
    """The open connections of a gateway.

    A new connection beyond a limit takes the place of the one that has waited for its client for
    the longest time: of its own owner if that has too many, else of any. A connection waits for
    its client while it has not sent a whole request, or does not read its answer.

    Attributes:
        max_connections: how many may be open.
        max_per_owner: how many one owner may have open.
        owner_of: the owner of an address.
    """

    max_connections: int
    max_per_owner: int
    owner_of: Callable[[str], str]
    _open: int = 0
    _by_owner: Counter[str] = field(default_factory=Counter)
    _idle: dict[Connection, None] = field(default_factory=dict)

    def admit(self, connection: Connection) -> bool:
        """Count a new connection; False when nothing idle could make room for it."""
        owner = connection.owner
        is_admitted = True
        if owner and self._by_owner[owner] >= self.max_per_owner:
            is_admitted = self._evict(owner)
        elif self._open >= self.max_connections:
            is_admitted = self._evict(None)
        self._open += 1
        self._by_owner[owner] += 1
        if is_admitted:
            self._idle[connection] = None
        return is_admitted

    def set_idle(self, connection: Connection) -> None:
        """Note that it waits for its client, since now or an earlier call."""
        self._idle.setdefault(connection)

    def set_busy(self, connection: Connection) -> None:
        """Note that a request is whole and is being answered."""
        self._idle.pop(connection, None)

    def remove(self, connection: Connection) -> None:
        """Forget a closed connection."""
        self._idle.pop(connection, None)
        self._open -= 1
        self._by_owner[connection.owner] -= 1
        if not self._by_owner[connection.owner]:
            del self._by_owner[connection.owner]

    def _evict(self, owner: str | None) -> bool:
        # A dict keeps the order in which connections became idle.
        for idle in self._idle:
            if owner is None or idle.owner == owner:
                del self._idle[idle]
                idle.evict()
                return True
        return False
