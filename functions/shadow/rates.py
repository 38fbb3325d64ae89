"""How often a device may ask of its shadows, and how much a tenant, over all hosts together."""

from typing import Any

import structlog

from functions.domain.rate_limiter import RateLimiter, SteadyClock
from functions.domain.rate_sharing import RateSharing, Store
from functions.domain.registry import DeviceKey
from functions.shadow.shadow import ChangeRefused
from runtime import Message

_SHARING = "shadow"
_TOLD_PER_S, _TOLD_AT_ONCE = 1.0, 5
_TOKEN_BYTES = 1000


class Rates:
    """Limits the requests of a device, its tenant's work, and the rejections that it is told of.

    What a request costs goes by the documents that it reads and is answered with. So a tenant is
    charged for their bytes, when they are known, and none of its requests is taken while it owes.

    Requests of a tenant that floods are moved aside and come later than newer ones, which a limiter
    takes for another clock. They have limiters of their own: such a tenant may get twice as much.

    Args:
        device: rate of a device's requests in a second, and how many it may send at once.
        tenant: bytes of the documents of all devices of a tenant, likewise.
        store: where hosts tell each other what they took.
        log: of the function.
    """

    def __init__(
        self,
        device: tuple[float, int],
        tenant: tuple[int, int],
        store: Store,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        per_s, burst = tenant[0] / _TOKEN_BYTES, max(1, tenant[1] // _TOKEN_BYTES)
        self._requests: list[RateLimiter[DeviceKey]] = [RateLimiter(*device) for _ in range(2)]
        self._work: list[RateLimiter[str]] = [RateLimiter(per_s, burst) for _ in range(2)]
        self._clocks = [SteadyClock() for _ in range(2)]
        self._rejections: list[RateLimiter[DeviceKey]] = [
            RateLimiter(_TOLD_PER_S, _TOLD_AT_ONCE) for _ in range(2)
        ]
        limiters: dict[str, RateLimiter[Any]] = {
            "device": self._requests[False],
            "tenant": self._work[False],
            "spilled_device": self._requests[True],
            "spilled_tenant": self._work[True],
        }
        self.sharing = RateSharing(_SHARING, limiters, store, log)

    def require(self, device: DeviceKey, message: Message) -> None:
        """Take a request's place.

        Raises:
            ChangeRefused: `RATE_LIMITED`.
        """
        was_spilled = message.called_before
        at_ns = self._clocks[was_spilled].read(message.stored_at_ns)
        if not self._requests[was_spilled].take(device, at_ns):
            raise ChangeRefused("RATE_LIMITED", "the device asks too often")
        if self._work[was_spilled].is_empty(device[0], at_ns):
            raise ChangeRefused("RATE_LIMITED", "the tenant's devices ask for too much")

    def charge(self, device: DeviceKey, message: Message, work_bytes: int) -> None:
        """Charge what a request read and is answered with to its tenant."""
        tokens = -(-work_bytes // _TOKEN_BYTES)
        was_spilled = message.called_before
        at_ns = self._clocks[was_spilled].read(message.stored_at_ns)
        self._work[was_spilled].charge(device[0], at_ns, tokens)

    def may_tell(self, device: DeviceKey, message: Message) -> bool:
        """Whether to answer a request that has no place: a flood must not cause another one."""
        was_spilled = message.called_before
        at_ns = self._clocks[was_spilled].read(message.stored_at_ns)
        return self._rejections[was_spilled].take(device, at_ns)
