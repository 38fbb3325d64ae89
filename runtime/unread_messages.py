"""How near unread messages of a stream are to their deletion, and how many were deleted. Pure."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

_NS_PER_S = 1_000_000_000
# A trend of a shorter time is a burst, and a smaller share is no danger yet.
_TREND_S = 3.0
_TREND_SHARE = 0.1


class Unread(NamedTuple):
    """How near the unread messages of a stream are to their deletion.

    Attributes:
        durable: the consumer that is furthest behind.
        share: what part of a limit its unread messages take, 0 to 1; at 1 the oldest is deleted
            next.
        limit: that limit, of which they take the most: `max_bytes`, `max_msgs` or `max_age`.
    """

    durable: str
    share: float
    limit: str

    @property
    def percent(self) -> int:
        """The share, rounded down."""
        return int(self.share * 100)


class Place(NamedTuple):
    """How far a consumer is.

    Attributes:
        settled_to: it has settled all of its messages up to this sequence.
        unread: its messages that are not delivered, or not settled.
        is_filtered: whether only a part of the stream's messages is its own.
        delivered_to: the last sequence that was delivered.
        deliveries: how many deliveries there were, repeated ones included.
        undelivered: its messages that are not delivered.
        redelivered: of the unsettled ones, how many were delivered more than once.
        created: when the consumer was created; its counts begin there.
    """

    settled_to: int
    unread: int
    is_filtered: bool = False
    delivered_to: int = 0
    deliveries: int = 0
    undelivered: int = 0
    redelivered: int = 0
    created: str = ""


class Lost(NamedTuple):
    """How many messages were deleted that a consumer never got; equal when that is certain."""

    at_least: int
    at_most: int


NOTHING = Lost(0, 0)


def lost_since(before: Place | None, now: Place, first: int) -> Lost:
    """The messages that were deleted before their first delivery.

    The two counts of a consumer tell: `delivered_to` passes a deleted message, `deliveries` does
    not count it. A delivery that repeats counts as well, so with such ones there is a range.

    Args:
        before: the consumer at an earlier look, as `accounted` returned it; None for the first.
        now: the consumer.
        first: the first sequence of the stream, asked for just before.
    """
    if before is None or before.created != now.created:
        # Between the last delivery and the first message that is left, nothing was delivered.
        certain = 0 if now.is_filtered else max(0, first - 1 - now.delivered_to)
        return Lost(certain, certain)
    deliveries = now.deliveries - before.deliveries
    if now.is_filtered:
        return _lost_of_its_own(before, now, first, deliveries)
    gone = first - 1 - before.delivered_to
    if gone <= 0:
        return NOTHING
    passed = max(now.delivered_to, first - 1) - before.delivered_to
    least = min(max(0, passed - deliveries), gone)
    is_certain = not before.redelivered and not now.redelivered and deliveries <= passed
    return Lost(least, least if is_certain else gone)


def _lost_of_its_own(before: Place, now: Place, first: int, deliveries: int) -> Lost:
    """Of a consumer with filters: which of the deleted messages were its own, nobody says."""
    oldest = before.settled_to + 1
    if not before.undelivered or oldest >= first or oldest <= before.delivered_to:
        return NOTHING
    most = min(first - oldest, max(0, before.undelivered - deliveries))
    return Lost(int(most > 0 and now.delivered_to < oldest), most)


def accounted(place: Place, first: int) -> Place:
    """The place, after what was deleted up to `first` is counted."""
    if place.is_filtered:
        return place
    return place._replace(delivered_to=max(place.delivered_to, first - 1))


def slowest(places: Mapping[str, Place]) -> str | None:
    """The durable that is furthest behind; None when all have caught up."""
    behind = [name for name, place in places.items() if place.unread]
    return min(behind, key=lambda name: places[name].settled_to, default=None)


def measure(
    found: Mapping[str, Any],
    places: Mapping[str, Place],
    durable: str | None,
    oldest_at: datetime | None,
) -> Unread:
    """How much of its limits the unread messages of a stream take.

    Args:
        found: JetStream's `stream_info`.
        places: how far consumers are, by durable.
        durable: the one that is furthest behind.
        oldest_at: when the oldest unread message was stored; None while that cannot matter.
    """
    state, config = found["state"], found["config"]
    if durable is None or not state["messages"]:
        return Unread(durable or "", 0.0, "")
    acked = max(places[durable].settled_to, state["first_seq"] - 1)
    span = state["last_seq"] - state["first_seq"] + 1
    unread = (state["last_seq"] - acked) / span
    shares = {
        "max_bytes": _share(unread * state["bytes"], config.get("max_bytes")),
        "max_msgs": _share(unread * state["messages"], config.get("max_msgs")),
        "max_age": 0.0 if oldest_at is None else share_of_age(found, oldest_at),
    }
    limit = max(shares, key=lambda name: shares[name])
    return Unread(durable, min(1.0, shares[limit]), limit)


def share_of_flow(found: Mapping[str, Any], messages: int) -> float:
    """What part of its limits so many more messages would take."""
    state, config = found["state"], found["config"]
    if not state["messages"]:
        return 0.0
    mean_bytes = state["bytes"] / state["messages"]
    return max(
        _share(messages * mean_bytes, config.get("max_bytes")),
        _share(messages, config.get("max_msgs")),
    )


def share_of_age(found: Mapping[str, Any], stored_at: datetime) -> float:
    """What part of the stream's `max_age` a message has reached that was stored then."""
    now = datetime.fromisoformat(found["ts"]) if "ts" in found else datetime.now(UTC)
    max_age_ns: int = found["config"]["max_age"]
    return (now - stored_at).total_seconds() * _NS_PER_S / max_age_ns


def seconds_left(samples: Sequence[tuple[float, float]]) -> float | None:
    """In how many seconds the limit is reached if the share grows as it did.

    Args:
        samples: time in seconds and share of the last looks, the oldest first.

    Returns:
        None while it does not grow, or is not watched for long enough to say.
    """
    (began_s, before), (now_s, share) = samples[0], samples[-1]
    if now_s - began_s < _TREND_S or share < _TREND_SHARE or share <= before:
        return None
    return max(0.0, 1 - share) * (now_s - began_s) / (share - before)


def _share(used: float, limit: int | None) -> float:
    return used / limit if limit is not None and limit > 0 else 0.0


__all__ = [
    "NOTHING",
    "Lost",
    "Place",
    "Unread",
    "accounted",
    "lost_since",
    "measure",
    "seconds_left",
    "share_of_age",
    "share_of_flow",
    "slowest",
]
