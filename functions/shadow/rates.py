"""How often a device may ask of its shadows, and how much a tenant, over all hosts together."""

from typing import Any

import structlog

from functions.domain.rate_limiter import RateLimiter
from functions.domain.rate_sharing import RateSharing, Store
from functions.domain.registry import DeviceKey
from functions.shadow.shadow import ChangeRefused

_SHARING = "shadow"
_TOLD_PER_S, _TOLD_AT_ONCE = 1.0, 5
_TOKEN_BYTES = 1000


class Rates:
    """Limits the requests of a device, its tenant's work, and the rejections that it is told of.

    What a request costs goes by the documents that it reads and is answered with. So a tenant is
    charged for their bytes, when they are known, and none of its requests is taken while it owes.

    Args:
        rate_per_s: requests of a device.
        burst: of these at once.
        tenant_bytes_per_s: bytes of the documents of all devices of a tenant.
        tenant_burst_bytes: of these at once.
        store: where hosts tell each other what they took.
        log: of the function.
    """

    def __init__(
        self,
        *,
        rate_per_s: float,
        burst: int,
        tenant_bytes_per_s: int,
        tenant_burst_bytes: int,
        store: Store,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._requests: RateLimiter[DeviceKey] = RateLimiter(rate_per_s, burst)
        self._work: RateLimiter[str] = RateLimiter(
            tenant_bytes_per_s / _TOKEN_BYTES, max(1, tenant_burst_bytes // _TOKEN_BYTES)
        )
        self._rejections: RateLimiter[DeviceKey] = RateLimiter(_TOLD_PER_S, _TOLD_AT_ONCE)
        limiters: dict[str, RateLimiter[Any]] = {"device": self._requests, "tenant": self._work}
        self.sharing = RateSharing(_SHARING, limiters, store, log)

    def require(self, device: DeviceKey, stored_at_ns: int) -> None:
        """Take a request's place.

        Raises:
            ChangeRefused: `RATE_LIMITED`.
        """
        if not self._requests.take(device, stored_at_ns):
            raise ChangeRefused("RATE_LIMITED", "the device asks too often")
        if self._work.is_empty(device[0], stored_at_ns):
            raise ChangeRefused("RATE_LIMITED", "the tenant's devices ask for too much")

    def charge(self, device: DeviceKey, stored_at_ns: int, work_bytes: int) -> None:
        """Charge what a request read and is answered with to its tenant."""
        self._work.charge(device[0], stored_at_ns, -(-work_bytes // _TOKEN_BYTES))

    def may_tell(self, device: DeviceKey, stored_at_ns: int) -> bool:
        """Whether to answer a request that has no place: a flood must not cause another one."""
        return self._rejections.take(device, stored_at_ns)
