"""How often a device may answer, and a tenant may make commands, over all hosts together."""

from typing import Any

from functions.domain.rate_limiter import RateLimiter
from functions.domain.rate_sharing import PostgresStore, RateSharing
from runtime import Context


class Rate:
    """A rate for each key. Each host limits at once; what all gave out too much is a debt.

    Args:
        name: of the rate, the same on every host: lower case and underscores.
        rate_per_s: for each key.
        burst: at once.
        ctx: of the function, with PostgreSQL.
        has_own_clock: whether the times are of this host's clock, and not of a stream's.

    Attributes:
        sharing: tells other hosts what was taken.
    """

    def __init__(
        self,
        name: str,
        rate_per_s: float,
        burst: int,
        ctx: Context[Any],
        *,
        has_own_clock: bool = False,
    ) -> None:
        self._limiter: RateLimiter[Any] = RateLimiter(rate_per_s, burst)
        store = PostgresStore(ctx.postgres)
        self.sharing = RateSharing(
            name, {"key": self._limiter}, store, ctx.log, has_own_clock=has_own_clock
        )

    def take(self, key: tuple[str, ...], now_ns: int) -> bool:
        """Take a token of the key at that time; False when there is none."""
        return self._limiter.take(key, now_ns)


__all__ = ["Rate"]
