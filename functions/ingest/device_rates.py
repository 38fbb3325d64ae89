"""The message rates of devices: one for what was just measured, one for what comes late."""

from typing import Any

from functions.domain.device_time import read_device_time_ns
from functions.domain.rate_limiter import RateLimiter
from functions.domain.registry import DeviceKey

_NS = 1_000_000_000


class DeviceRates:
    """Two token buckets for each device.

    A device that was cut off keeps its readings and sends them at once when it is back. Those are
    charged to a bucket of their own, so that they pass, and leave the rate of the readings that go
    on alone. A reading counts as late when it is older than half of the time for which the burst
    lasts at the rate: a device that measures within its rate then loses nothing, however long the
    outage was, and the other half is left for the readings that go on.

    Whoever writes old times into every message gets the sum of both rates in the long run.

    Attributes:
        devices: the bucket of what goes on.
        tenants: a token bucket for each tenant, charged after the device's; None for no limit.
        limiters: all of them by the names by which hosts share them.
    """

    def __init__(
        self,
        rate_per_s: float,
        burst: int,
        backfill_rate_per_s: float,
        backfill_burst: int,
        *,
        tenants: RateLimiter[str] | None = None,
    ) -> None:
        self.devices: RateLimiter[DeviceKey] = RateLimiter(rate_per_s, burst)
        self._backfill: RateLimiter[DeviceKey] = RateLimiter(backfill_rate_per_s, backfill_burst)
        self.tenants = tenants
        self.limiters: dict[str, RateLimiter[Any]] = {
            "device": self.devices,
            "late": self._backfill,
            **({} if tenants is None else {"tenant": tenants}),
        }
        self._late_ns = int(_NS * burst / rate_per_s / 2)

    def take(
        self, key: DeviceKey, stored_at_ns: int, measured_at_ns: int | None, received_at: object
    ) -> bool:
        """Take a token for one message; False when there is none.

        Args:
            key: the device.
            stored_at_ns: when the stream stored the message; call in the stream's order.
            measured_at_ns: when the device says that it measured; None when it does not.
            received_at: when the ingress says that it received the message, as it wrote it: a
                broker that could not pass on its messages for a while sends them at once, too.
        """
        is_late = measured_at_ns is not None and stored_at_ns - measured_at_ns > self._late_ns
        if is_late and self._backfill.take(key, stored_at_ns):
            return True
        if self.devices.take(key, stored_at_ns):
            return True
        if is_late or received_at is None:
            return False
        received_at_ns = read_device_time_ns(received_at, stored_at_ns)
        if received_at_ns is None or stored_at_ns - received_at_ns <= self._late_ns:
            return False
        return self._backfill.take(key, stored_at_ns)


__all__ = ["DeviceRates"]
