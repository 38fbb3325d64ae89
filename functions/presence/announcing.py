"""Changes of a device's status, and the events that tell of them."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from functions.domain.device_activity import ended_text
from functions.domain.device_events import NewEvent
from functions.domain.topics import PRESENCE
from functions.presence.decision import Reason, Status

_DIGITS = 32
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Transition(NamedTuple):
    """A change of a device's status, in the order of the columns of its row.

    Attributes:
        number: 1 is the device's first change.
        at: when it changed.
        last_seen_at: when the device was seen before that.
    """

    tenant_id: str
    device_id: str
    number: int
    status: Status
    reason: Reason
    at: datetime
    last_seen_at: datetime | None


def event_of(transition: Transition) -> NewEvent:
    """The event of a change, under an id that only this change has."""
    tenant_id, device_id, number, status, reason, at, last_seen_at = transition
    # A device that is registered anew begins with number 1 again.
    digest = hashlib.sha256(f"{tenant_id}/{device_id}/{at.isoformat()}".encode()).hexdigest()
    payload = {
        "status": status,
        "reason": reason,
        "at": at,
        "last_seen_at": last_seen_at,
        "number": number,
    }
    event_id = f"presence-{digest[:_DIGITS]}-{number}"
    return NewEvent(tenant_id, device_id, PRESENCE, event_id, payload)


def ended_texts(transitions: Iterable[Transition]) -> list[str]:
    """Notifications of the changes by a session's end, for whoever takes messages of devices."""
    ended: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for each in transitions:
        if each.reason in {"disconnected", "server_lost"}:
            ended[each.tenant_id][each.device_id] = (each.at - _EPOCH) // _MICROSECOND
    return [text for tenant_id, some in ended.items() for text in ended_text(tenant_id, some)]


__all__ = ["Transition", "ended_texts", "event_of"]
