"""Core NATS in memory: subscriptions, queue groups, wildcards."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from runtime.subjects import matches

Deliver = Callable[[int, str, str, bytes, bytes], None]
"""Sends a message to a client: subscription, subject, reply, header block, payload."""


@dataclass(slots=True, eq=False)
class Subscription:
    """One subscription of one client.

    Attributes:
        owner: the client's session.
        left: how many more messages it gets, after an UNSUB with a number; None for no limit.
    """

    owner: object
    sid: int
    subject: str
    queue: str
    deliver: Deliver
    left: int | None = None


class Subscriptions:
    """All subscriptions of a server."""

    def __init__(self) -> None:
        self._exact: dict[str, list[Subscription]] = {}
        self._patterns: list[Subscription] = []
        self._turns: dict[tuple[str, str], int] = {}

    def add(self, subscription: Subscription) -> None:
        """Add one."""
        if "*" in subscription.subject or subscription.subject.endswith(">"):
            self._patterns.append(subscription)
        else:
            self._exact.setdefault(subscription.subject, []).append(subscription)

    def remove(self, owner: object, sid: int | None = None) -> None:
        """Remove a client's subscription, or all of its subscriptions."""
        for subscription in list(self._all()):
            if subscription.owner is owner and sid in (None, subscription.sid):
                self._drop(subscription)

    def find(self, owner: object, sid: int) -> Subscription | None:
        """A client's subscription by its number."""
        return next((each for each in self._all() if each.owner is owner and each.sid == sid), None)

    def has_interest(self, subject: str) -> bool:
        """Whether some subscription matches the subject."""
        return next(self._matching(subject), None) is not None

    def route(self, subject: str, reply: str, block: bytes, data: bytes) -> int:
        """Deliver to every matching subscription, and to one of each queue group.

        Returns the number of deliveries.
        """
        return self.route_as(subject, subject, reply, block, data)

    def route_as(self, inbox: str, subject: str, reply: str, block: bytes, data: bytes) -> int:
        """As `route` to the subscriptions of `inbox`, with another subject in the message."""
        chosen: list[Subscription] = []
        groups: dict[str, list[Subscription]] = {}
        for subscription in self._matching(inbox):
            if subscription.queue:
                groups.setdefault(subscription.queue, []).append(subscription)
            else:
                chosen.append(subscription)
        for queue, members in groups.items():
            turn = self._turns.get((inbox, queue), 0)
            self._turns[inbox, queue] = turn + 1
            chosen.append(members[turn % len(members)])
        for subscription in chosen:
            subscription.deliver(subscription.sid, subject, reply, block, data)
            if subscription.left is not None:
                subscription.left -= 1
                if subscription.left <= 0:
                    self._drop(subscription)
        return len(chosen)

    def _matching(self, subject: str) -> Iterator[Subscription]:
        yield from list(self._exact.get(subject, ()))
        for subscription in list(self._patterns):
            if matches(subscription.subject, subject):
                yield subscription

    def _all(self) -> Iterator[Subscription]:
        for found in list(self._exact.values()):
            yield from list(found)
        yield from list(self._patterns)

    def _drop(self, subscription: Subscription) -> None:
        if subscription in self._patterns:
            self._patterns.remove(subscription)
            return
        found = self._exact.get(subscription.subject, [])
        if subscription in found:
            found.remove(subscription)
            if not found:
                del self._exact[subscription.subject]
