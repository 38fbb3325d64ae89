"""Notes that devices have sent something, for the function that watches their presence.

Whoever takes a device's message notes it in the transaction of the message's effect, so a host that
is killed leaves either both or none. Nothing is noted while nobody watches.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from functions.domain.named_sql import read_queries
from functions.domain.quarantine import Executor

_QUERIES = read_queries(Path(__file__).with_name("device_activity.sql"))
_NS_PER_US = 1000
_NS_PER_S = 1_000_000_000
_MOST_S = 60
_PART = 3

DEFAULT_TIMEOUT_S = 600
"""Seconds of silence after which a device without a session is offline, unless set otherwise."""


def note_every_ns(timeout_s: int) -> int:
    """How long a device that was noted need not be noted again, in nanoseconds.

    A third of its timeout, so that the first message after a silence is always noted, and a minute
    at most: so far the noted time may be behind the newest row of telemetry.
    """
    return min(_MOST_S, timeout_s // _PART) * _NS_PER_S


async def note_seen(executor: Executor, seen: Mapping[tuple[str, str], int]) -> None:
    """Note when devices were seen.

    Args:
        executor: a connection in the caller's transaction, or the pool.
        seen: nanoseconds since 1970, by tenant and device.
    """
    if not seen:
        return
    devices: defaultdict[str, list[str]] = defaultdict(list)
    times: defaultdict[str, list[str]] = defaultdict(list)
    for (tenant_id, device_id), at_ns in seen.items():
        devices[tenant_id].append(device_id)
        times[tenant_id].append(str(at_ns // _NS_PER_US))
    await executor.execute(
        _QUERIES["note"],
        list(devices),
        [",".join(ids) for ids in devices.values()],
        [",".join(each) for each in times.values()],
    )


__all__ = ["DEFAULT_TIMEOUT_S", "note_every_ns", "note_seen"]
