"""Notes that devices have sent something, for the function that watches their presence.

Whoever takes a device's message notes it in the transaction of the message's effect, so a host that
is killed leaves either both or none. Nothing is noted while nobody watches.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from functions.domain.named_sql import read_queries
from functions.domain.quarantine import Executor

_QUERIES = read_queries(Path(__file__).with_name("device_activity.sql"))
_NS_PER_US = 1000
_NS_PER_S = 1_000_000_000
_MOST_S = 60
_PART = 3
_DIGITS = 16
# PostgreSQL takes 7,999 bytes, a tenant's id included.
_NOTIFICATION = 7_500

DEFAULT_TIMEOUT_S = 600
"""Seconds of silence after which a device without a session is offline, unless set otherwise."""


OFFLINE_CHANNEL = "device_offline"
"""PostgreSQL's channel that tells of devices whose session has ended: see `read_ended`."""
AFTER_SESSION_NS = 2 * _NS_PER_S
"""A message that is stored so shortly after a session's end was sent in that session, perhaps."""


class Seen(NamedTuple):
    """When a device was seen.

    Attributes:
        at_ns: nanoseconds since 1970.
        is_sessionless: it did not come in a session of nats-server's MQTT listener, but by HTTP or
            by a bridge.
    """

    at_ns: int
    is_sessionless: bool


def note_every_ns(timeout_s: int) -> int:
    """How long a device that was noted need not be noted again, in nanoseconds.

    A third of its timeout, so that the first message after a silence is always noted, and a minute
    at most: so far the noted time may be behind the newest row of telemetry.
    """
    return min(_MOST_S, timeout_s // _PART) * _NS_PER_S


async def note_seen(executor: Executor, seen: Mapping[tuple[str, str], Seen]) -> None:
    """Note when devices were seen.

    Args:
        executor: a connection in the caller's transaction, or the pool.
        seen: when, by tenant and device.
    """
    if not seen:
        return
    devices: defaultdict[str, list[str]] = defaultdict(list)
    times: defaultdict[str, list[str]] = defaultdict(list)
    sessionless: defaultdict[str, list[str]] = defaultdict(list)
    for (tenant_id, device_id), (at_ns, is_sessionless) in seen.items():
        devices[tenant_id].append(device_id)
        times[tenant_id].append(str(at_ns // _NS_PER_US))
        sessionless[tenant_id].append("1" if is_sessionless else "0")
    await executor.execute(
        _QUERIES["note"],
        list(devices),
        [",".join(ids) for ids in devices.values()],
        [",".join(each) for each in times.values()],
        [",".join(each) for each in sessionless.values()],
    )


def ended_text(tenant_id: str, ended: Mapping[str, int]) -> list[str]:
    """Notifications that sessions of a tenant's devices have ended.

    Args:
        tenant_id: the tenant.
        ended: when, in microseconds since 1970, by device.
    """
    texts, room = [tenant_id], _NOTIFICATION
    for device_id, ended_us in ended.items():
        entry = f",{device_id}@{ended_us}"
        room -= len(entry)
        if room < 0:
            texts.append(tenant_id)
            room = _NOTIFICATION - len(entry)
        texts[-1] += entry
    return texts


def read_ended(text: str) -> tuple[str, dict[str, int]]:
    """Tenant, and when the last sessions of its devices ended, in nanoseconds since 1970.

    Nothing of a text that is none of `ended_text`: whoever may use the database may send one.
    """
    tenant_id, *entries = text.split(",")
    ended = {}
    for entry in entries:
        device_id, _, ended_us = entry.partition("@")
        if ended_us.isdecimal() and len(ended_us) <= _DIGITS:
            ended[device_id] = int(ended_us) * _NS_PER_US
    return tenant_id, ended


__all__ = [
    "AFTER_SESSION_NS",
    "DEFAULT_TIMEOUT_S",
    "OFFLINE_CHANNEL",
    "Seen",
    "ended_text",
    "note_every_ns",
    "note_seen",
    "read_ended",
]
