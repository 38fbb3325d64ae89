"""Bounds what the attempt log keeps of the answers of one tenant's endpoints."""

import time
from collections.abc import Callable

from functions.domain.rate_limiter import RateLimiter

SHORT_CHARACTERS = 256
_LONG_PER_S, _LONG_AT_ONCE = 1 / 30, 1000
_CUT_MARK = "…"


class ExcerptShare:
    """Cuts the answers of a tenant whose endpoints have said much.

    An endpoint that fails may answer 16 kB to every attempt of every job, for a month of log. The
    first thousand long answers of a tenant are kept, then two a minute; the others are cut to 256
    characters. A person who looks for a fault finds it in the first ones.

    Args:
        now_ns: a clock.
    """

    def __init__(self, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._now_ns = now_ns
        self._long: RateLimiter[str] = RateLimiter(_LONG_PER_S, _LONG_AT_ONCE, max_keys=10_000)

    def cut(self, tenant_id: str, excerpt: str | None) -> str | None:
        """The excerpt, or its beginning when the tenant has had its share."""
        if excerpt is None or len(excerpt) <= SHORT_CHARACTERS:
            return excerpt
        if self._long.take(tenant_id, self._now_ns()):
            return excerpt
        return excerpt[: SHORT_CHARACTERS - len(_CUT_MARK)] + _CUT_MARK


__all__ = ["SHORT_CHARACTERS", "ExcerptShare"]
