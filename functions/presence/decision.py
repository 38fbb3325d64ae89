"""Decides whether a device is online, from what is known of it. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from functions.domain.device_activity import AFTER_SESSION_NS

Status = Literal["online", "offline"]
Reason = Literal["connected", "seen", "disconnected", "server_lost", "silent"]

AFTER_SESSION = timedelta(microseconds=AFTER_SESSION_NS // 1000)
"""A message that is stored so shortly after a session's end was sent in that session, unless it is
known to have come outside of it."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a device.

    Attributes:
        status: as decided last.
        changed_at: when it became so; None while nothing was decided.
        last_seen_at: when it last sent something, or a session began or ended; None for never.
        open_since: when the newest of its open sessions began; None without an open session.
        sessionless_at: when it last sent something outside of a session; None for never.
        session_ended_at: when the last ended session ended; None when none has.
        is_lost: that session ended with its server.
        own_timeout_s: the device's own timeout, which counts for an open session as well.
        timeout_s: the installation's timeout, which counts without a session.
    """

    status: Status
    changed_at: datetime | None
    last_seen_at: datetime | None
    sessionless_at: datetime | None
    open_since: datetime | None
    session_ended_at: datetime | None
    is_lost: bool
    own_timeout_s: int | None
    timeout_s: int


class Decision(NamedTuple):
    """What the device is.

    Attributes:
        status: online or offline.
        reason: why.
        at: since when, if this is a change; never before the last change.
        check_at: when to decide again if nothing is heard; None when silence changes nothing.
    """

    status: Status
    reason: Reason
    at: datetime
    check_at: datetime | None


def decide(known: Known, now: datetime) -> Decision | None:
    """The device's presence; None while it was never seen.

    | session | own timeout | online |
    |---|---|---|
    | open | none | while the session is open |
    | open | set | while the device was seen within it |
    | ended, and nothing seen since | any | no |
    | none, or seen since it ended | any | while it was seen within its own or the usual timeout |

    Args:
        known: what is known of the device.
        now: up to when all messages of devices are known.
    """
    seen_at = known.last_seen_at
    if seen_at is None:
        return None
    silent_at = seen_at + timedelta(seconds=known.own_timeout_s or known.timeout_s)
    if known.open_since is not None:
        if known.own_timeout_s is None:
            return _online(known, seen_at, None)
    elif known.session_ended_at and not _is_seen_since(known, seen_at, known.session_ended_at):
        reason: Reason = "server_lost" if known.is_lost else "disconnected"
        return Decision("offline", reason, _not_before(known, known.session_ended_at), None)
    if silent_at <= now:
        return Decision("offline", "silent", _not_before(known, silent_at), None)
    return _online(known, seen_at, silent_at)


def _is_seen_since(known: Known, seen_at: datetime, ended_at: datetime) -> bool:
    if known.sessionless_at is not None and known.sessionless_at > ended_at:
        return True
    return seen_at > ended_at + AFTER_SESSION


def _online(known: Known, seen_at: datetime, check_at: datetime | None) -> Decision:
    began_at = known.open_since
    if began_at is not None and (known.changed_at is None or began_at > known.changed_at):
        return Decision("online", "connected", began_at, check_at)
    return Decision("online", "seen", _not_before(known, seen_at), check_at)


def _not_before(known: Known, at: datetime) -> datetime:
    return at if known.changed_at is None else max(at, known.changed_at)


__all__ = ["AFTER_SESSION", "Decision", "Known", "Reason", "Status", "decide"]
