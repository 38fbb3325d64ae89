"""A command's states, and the states that each answer of a device may change.

queued → sent → acked → succeeded | failed | rejected; queued → expired; sent, acked → timed_out;
queued, sent, acked → cancelled. A device can answer before the database says `sent`, so an answer
counts from `queued` on. A final state never changes: a later answer is stored as late and changes
nothing.
"""

from typing import Literal

Status = Literal[
    "queued",
    "sent",
    "acked",
    "succeeded",
    "failed",
    "rejected",
    "expired",
    "timed_out",
    "cancelled",
]
AckStatus = Literal["acked", "succeeded", "failed", "rejected"]

_LEAVES: dict[AckStatus, tuple[Status, ...]] = {
    "acked": ("queued", "sent"),
    "succeeded": ("queued", "sent", "acked"),
    "failed": ("queued", "sent", "acked"),
    "rejected": ("queued", "sent", "acked"),
}


def leaves(answer: AckStatus) -> tuple[Status, ...]:
    """The states that this answer may change."""
    return _LEAVES[answer]
