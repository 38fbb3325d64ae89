"""How often a device may answer, and a tenant may make commands, over all hosts together."""

from typing import Any

from functions.domain.rate_limiter import RateLimiter, SteadyClock
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
        self._spilled: RateLimiter[Any] = RateLimiter(rate_per_s, burst)
        self._clock, self._spilled_clock = SteadyClock(), SteadyClock()
        limiters = {"key": self._limiter, "spilled": self._spilled}
        store = PostgresStore(ctx.postgres)
        self.sharing = RateSharing(name, limiters, store, ctx.log, has_own_clock=has_own_clock)

    def take(self, key: tuple[str, ...], now_ns: int) -> bool:
        """Take a token of the key at that time; False when there is none."""
        return self._limiter.take(key, self._clock.read(now_ns))

    def take_spilled(self, key: tuple[str, ...], now_ns: int) -> bool:
        """As `take`, for a message that was moved aside in a flood, and comes after newer ones.

        It has a limiter of its own, to which newer ones are no sign of another clock.
        """
        return self._spilled.take(key, self._spilled_clock.read(now_ns))


__all__ = ["Rate"]
