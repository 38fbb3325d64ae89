"""A message's states, and which state may follow which.

queued → sending → sent → delivered | failed; sending → queued when another attempt is due, failed
after the last one, refused when another would not help. An attempt whose result nobody knows makes
the message unknown: a look-up at the provider or a person settles it. Delivered, failed and refused
are final: only a person's `resend` leaves failed and refused.
"""

from typing import Literal

Status = Literal["queued", "sending", "sent", "delivered", "failed", "refused", "unknown"]

FINAL: frozenset[Status] = frozenset({"delivered", "failed", "refused"})

_FOLLOWS: dict[Status, tuple[Status, ...]] = {
    "queued": ("sending", "unknown"),
    "sending": ("queued",),
    # From `unknown` too: a late answer is an answer.
    "sent": ("sending", "unknown"),
    "delivered": ("sending", "unknown", "sent"),
    "failed": ("sending", "unknown", "sent"),
    "refused": ("sending", "unknown"),
    "unknown": ("sending",),
}
RESENDS: tuple[Status, ...] = ("failed", "refused", "unknown")
"""The states that a person's `resend` may leave."""

SETTLES: tuple[Status, ...] = ("unknown",)
"""The states that a person's `mark` may leave."""


def leaves(status: Status) -> tuple[Status, ...]:
    """The states from which a message may get this one."""
    return _FOLLOWS[status]


__all__ = ["FINAL", "RESENDS", "SETTLES", "Status", "leaves"]
