"""How often a device may ask of its shadows, over all hosts together."""

import structlog

from functions.domain.rate_limiter import RateLimiter
from functions.domain.rate_sharing import RateSharing, Store
from functions.domain.registry import DeviceKey
from functions.shadow.shadow import ChangeRefused

_SHARING = "shadow"
_TOLD_PER_S, _TOLD_AT_ONCE = 1.0, 5


class Rates:
    """Limits the requests of a device, and how often it is told that it asks too often."""

    def __init__(
        self, rate_per_s: float, burst: int, store: Store, log: structlog.stdlib.BoundLogger
    ) -> None:
        self._requests: RateLimiter[DeviceKey] = RateLimiter(rate_per_s, burst)
        self._rejections: RateLimiter[DeviceKey] = RateLimiter(_TOLD_PER_S, _TOLD_AT_ONCE)
        self.sharing = RateSharing(_SHARING, {"device": self._requests}, store, log)

    def require(self, device: DeviceKey, stored_at_ns: int) -> None:
        """Take a request's place.

        Raises:
            ChangeRefused: `RATE_LIMITED`.
        """
        if not self._requests.take(device, stored_at_ns):
            raise ChangeRefused("RATE_LIMITED", "the device asks too often")

    def may_tell(self, device: DeviceKey, stored_at_ns: int) -> bool:
        """Whether to answer a request that has no place: a flood must not cause another one."""
        return self._rejections.take(device, stored_at_ns)
