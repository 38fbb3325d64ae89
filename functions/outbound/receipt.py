"""The result of one attempt, and the bounds of what a route type may say in it."""

import math
import re
from dataclasses import dataclass, replace
from typing import Literal, get_args

from functions.outbound.transport.faults import Fault

Outcome = Literal["delivered", "failed", "refused", "skipped"]
EndpointHealth = Literal["answered", "throttled", "failed", "unconnected", "unreachable", "unknown"]

MAX_REASON_CHARACTERS = 300
_OUTCOMES = frozenset(get_args(Outcome))
_HEALTH = frozenset({None, *get_args(EndpointHealth)})
_CODE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_STATUS_CODES = range(1000)
_HEALTH_BY_OUTCOME: dict[Outcome, EndpointHealth] = {
    "delivered": "answered",
    "failed": "failed",
    "refused": "answered",
    "skipped": "unknown",
}


@dataclass(frozen=True, slots=True)
class Receipt:
    """The result of one attempt.

    Attributes:
        outcome: `failed` is tried again, `refused` never. `skipped` means that nothing was tried,
            since it is too early: it uses up no attempt and is not logged.
        code: reason code in upper snake case; empty when delivered. The tenant sees it.
        reason: one sentence for a person, without secrets and internals.
        status_code: the number that the destination answered, if its protocol has one.
        excerpt: the beginning of the destination's answer. The tenant sees it.
        retry_after_s: seconds to wait, as the endpoint asked; of a skipped job, until it is tried.
        disables_route: the endpoint asked for no more deliveries.
        health: what the attempt says of the endpoint, for its breaker and its rate; None for what
            the outcome says. `failed`: the endpoint does not work. `throttled`: it asks for fewer
            requests. `unconnected`: the route's own choices kept it from being connected to, so
            nothing is known of its origin. `unreachable`: nothing at its origin can be connected
            to. `answered`: it works, whatever it thinks of this job. `unknown`: nothing.
    """

    outcome: Outcome
    code: str = ""
    reason: str = ""
    status_code: int | None = None
    excerpt: str | None = None
    retry_after_s: float | None = None
    disables_route: bool = False
    health: EndpointHealth | None = None

    @property
    def health_of_endpoint(self) -> EndpointHealth:
        """What the attempt says of the endpoint."""
        return self.health or _HEALTH_BY_OUTCOME[self.outcome]


def bounded(receipt: object, *, excerpt_characters: int, retry_after_cap_s: float) -> Receipt:
    """The receipt, cut to what the attempt log stores; a route type may be anybody's code.

    Raises:
        TypeError: it is no receipt, or has a value that a receipt cannot have.
    """
    if not isinstance(receipt, Receipt):
        raise TypeError(f"send returned {type(receipt).__name__}, not a Receipt")
    if receipt.outcome not in _OUTCOMES or receipt.health not in _HEALTH:
        raise TypeError("send returned a Receipt with an unknown outcome or health")
    wait_s = receipt.retry_after_s
    if wait_s is not None:
        wait_s = _seconds(wait_s, retry_after_cap_s)
    status = receipt.status_code if receipt.status_code in _STATUS_CODES else None
    excerpt = receipt.excerpt and _storable(receipt.excerpt, excerpt_characters)
    reason = _storable(receipt.reason, MAX_REASON_CHARACTERS)
    code = _code(receipt)
    kept = (receipt.code, receipt.reason, receipt.status_code, receipt.excerpt)
    if (code, reason, status, excerpt) == kept and wait_s == receipt.retry_after_s:
        return receipt
    return replace(
        receipt,
        code=code,
        reason=reason,
        status_code=status,
        excerpt=excerpt,
        retry_after_s=wait_s,
    )


def health_of_fault(fault: Fault) -> EndpointHealth:
    """What a fault says of the endpoint."""
    if fault.is_of_origin:
        return "unreachable"
    return "unconnected" if fault.is_of_route else "failed"


def _code(receipt: Receipt) -> str:
    if receipt.outcome == "delivered":
        return ""
    return receipt.code if _CODE.fullmatch(str(receipt.code)) else receipt.outcome.upper()


def _seconds(wait_s: float, cap_s: float) -> float | None:
    return min(max(wait_s, 0.0), cap_s) if math.isfinite(wait_s) else None


def _storable(text: str, characters: int) -> str:
    """At most so many characters, without those that PostgreSQL cannot store."""
    cut = str(text)[:characters]
    if not cut.isascii():
        cut = cut.encode(errors="replace").decode()
    return cut.replace("\0", "\N{REPLACEMENT CHARACTER}")


__all__ = ["EndpointHealth", "Outcome", "Receipt", "bounded", "health_of_fault"]
