"""Tells an operator of secrets that no key opens, once a minute and not for each job."""

import time

import structlog

_EVERY_S = 60.0


class UnreadableLog:
    """Logs that the jobs of a route wait for a key."""

    def __init__(self) -> None:
        self._told_at_s = float("-inf")
        self._held_back = 0

    def tell(self, log: structlog.stdlib.BoundLogger, route_id: str, reason: str) -> None:
        """Log it, unless that was done in the last minute."""
        now_s = time.monotonic()
        if now_s - self._told_at_s < _EVERY_S:
            self._held_back += 1
            return
        log.error(
            "The secrets of a route cannot be decrypted, so its jobs wait; correct SECRETS_KEYS",
            route_id=route_id,
            reason=reason,
            jobs_meanwhile=self._held_back,
        )
        self._told_at_s, self._held_back = now_s, 0


__all__ = ["UnreadableLog"]
