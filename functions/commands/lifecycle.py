"""A command's states, and which answer of a device may change which.

queued → sent → acked → succeeded | failed | rejected; queued → expired; sent, acked → timed_out;
queued, sent, acked → cancelled. A device can answer before it is noted that the command is out, so
an answer counts from `queued` on. What is final stays so: a later answer is kept as a late one and
changes nothing.
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
    """The states that this answer leads out of."""
    return _LEAVES[answer]
