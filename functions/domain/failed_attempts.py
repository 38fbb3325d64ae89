"""Limits failed proofs of identity by the address that they come from, and logs their number."""

import time
from collections.abc import Collection, Hashable

import structlog

from functions.domain.rate_limiter import RateLimiter
from functions.domain.source_addresses import PRIVATE, Network, is_in, read_networks

BURST = 10
INTERVAL_S = 10
_ADDRESS_BURST = 60
_ADDRESS_RATE_PER_S = 2.0
_TELL_EVERY_S = 60.0
_MAX_PASSED = 100_000


class FailedAttempts:
    """Counts failed proofs by address and identity, such as a device or the admin's key.

    An address may fail `BURST` times for one identity, and then once in `INTERVAL_S`. Apart from
    that it may fail 60 times for any identity, and then twice a second. The second does not hold
    for a shared address: whoever guesses would lock out everybody behind the same proxy.

    A proof that has passed before from the same address is not limited, so that whoever guesses
    does not lock out somebody behind the same address.
    """

    def __init__(
        self,
        log: structlog.stdlib.BoundLogger,
        identity: str,
        shared: Collection[Network] = read_networks(PRIVATE),
    ) -> None:
        """`identity` says in the log which identity is to be proved, such as `device`.

        `shared` are the networks whose addresses stand for many senders each.
        """
        self._log = log
        self._identity = identity
        self._shared = tuple(shared)
        self._by_identity: RateLimiter[tuple[str, Hashable]] = RateLimiter(1 / INTERVAL_S, BURST)
        self._by_address: RateLimiter[str] = RateLimiter(_ADDRESS_RATE_PER_S, _ADDRESS_BURST)
        self._passed: dict[tuple[str, Hashable], None] = {}
        self._refused = 0
        self._told_at_s = float("-inf")

    def may_try(self, source: str, identity: Hashable, proof: Hashable) -> bool:
        """Whether the address may try this proof: it has not failed too often.

        `source` is an address as `functions.domain.source_addresses` names it.
        """
        if (source, proof) in self._passed:
            return True
        now_ns = time.monotonic_ns()
        if self._by_identity.is_empty((source, identity), now_ns):
            return False
        return not self._by_address.is_empty(source, now_ns) or is_in(source, self._shared)

    def succeed(self, source: str, proof: Hashable) -> None:
        """Note that the proof has passed from this address."""
        passed = self._passed
        key = (source, proof)
        if key in passed:
            return
        if len(passed) >= _MAX_PASSED:
            del passed[next(iter(passed))]
        passed[key] = None

    def fail(self, source: str, identity: Hashable) -> bool:
        """Count a failure; whether the address may still fail."""
        now_ns = time.monotonic_ns()
        may_fail = self._by_identity.take((source, identity), now_ns)
        may_fail = self._by_address.take(source, now_ns) and may_fail
        self.note(source)
        return may_fail

    def note(self, source: str) -> None:
        """Count a refusal in the log alone, of a sender that did not even try an identity."""
        self._refused += 1
        now_s = time.monotonic()
        if now_s - self._told_at_s < _TELL_EVERY_S:
            return
        self._log.warning(
            "Requests are refused, as they do not prove an identity.",
            identity=self._identity,
            requests=self._refused,
            last_source=source,
        )
        self._refused, self._told_at_s = 0, now_s


__all__ = ["BURST", "INTERVAL_S", "FailedAttempts"]
