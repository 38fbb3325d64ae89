"""Answers to whoever has failed too often to prove an identity over HTTP."""

from collections.abc import Hashable

import structlog

from functions.domain import failed_attempts
from functions.domain.failed_attempts import BURST, INTERVAL_S
from functions.http_gateway.problems import ProblemError


class FailedAttempts:
    """Limits failed proofs, see `functions.domain.failed_attempts`; the answer is 429."""

    def __init__(self, log: structlog.stdlib.BoundLogger, identity: str) -> None:
        """`identity` says in the log which identity is to be proved, such as `device`."""
        self._attempts = failed_attempts.FailedAttempts(log, identity)

    def require_room(self, source: str, identity: Hashable, proof: Hashable) -> None:
        """Require that the address may try this proof.

        Raises:
            ProblemError: 429, because the address has failed too often to prove this identity.
        """
        if not self._attempts.may_try(source, identity, proof):
            raise _limited()

    def succeed(self, source: str, proof: Hashable) -> None:
        """Note that the proof has passed from this address."""
        self._attempts.succeed(source, proof)

    def fail(self, source: str, identity: Hashable, refusal: ProblemError) -> ProblemError:
        """Count a failure; the answer is `refusal`, or 429 when the address fails too often."""
        return refusal if self._attempts.fail(source, identity) else _limited()


def _limited() -> ProblemError:
    """The answer to an address that has failed too often; its connection is closed."""
    return ProblemError(
        429,
        "TOO_MANY_ATTEMPTS",
        "This address has failed too often to prove its identity.",
        headers={"Retry-After": str(INTERVAL_S), "Connection": "close"},
    )


__all__ = ["BURST", "INTERVAL_S", "FailedAttempts"]
