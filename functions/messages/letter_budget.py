"""Bounds the dead letters that one tenant's messages leave.

The host keeps all dead letters in one stream, which refuses when it is full, and then no function
can give a message up. A tenant that writes to many numbers which do not exist would fill it. Its
messages have rows with their content and the reason, and are sent again from those.
"""

import time
from collections.abc import Callable

import structlog

from functions.domain.delivery_counts import REFUSED_LETTER_BYTES
from functions.domain.hourly import Hourly
from functions.domain.rate_limiter import RateLimiter

_MOST_BYTES = 64_000_000
# As long as the stream keeps dead letters.
_KEPT_S = 30 * 86_400
_UNIT_BYTES = 1_000
_MAX_TENANTS = 10_000
_NS = 1_000_000_000


class LetterBudget:
    """Decides whether a message that is given up leaves a dead letter.

    A tenant has a budget of bytes on each host, which fills up within the time for which letters
    are kept: so it has at most twice the budget in the stream for each host.

    Args:
        log: gets a warning once an hour for a tenant that has used up its budget.
        most_bytes: the budget.
        now_ns: a clock.
    """

    def __init__(
        self,
        log: structlog.stdlib.BoundLogger,
        most_bytes: int = _MOST_BYTES,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        units = max(1, most_bytes // _UNIT_BYTES)
        self._units: RateLimiter[str] = RateLimiter(units / _KEPT_S, units, max_keys=_MAX_TENANTS)
        self._log = log
        self._now_ns = now_ns
        self._hourly = Hourly()

    def take(self, tenant_id: str, size_bytes: int) -> bool:
        """Whether a message of this size leaves a letter; if so, it is counted."""
        now_ns = self._now_ns()
        units = -(-(size_bytes + REFUSED_LETTER_BYTES) // _UNIT_BYTES)
        # What a large message takes beyond the last unit is not owed.
        if all(self._units.take(tenant_id, now_ns) for _ in range(units)):
            return True
        self._tell(tenant_id, now_ns)
        return False

    def _tell(self, tenant_id: str, now_ns: int) -> None:
        if self._hourly.is_due(tenant_id, now_ns // _NS):
            self._log.warning(
                "Messages of a tenant are given up without a letter, as it has too many",
                tenant_id=tenant_id,
            )


__all__ = ["LetterBudget"]
