"""A durable consumer that a function pulls from."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from runtime.message import Message


@dataclass(frozen=True, slots=True)
class PullSource:
    """A durable consumer to pull from.

    Attributes:
        subjects: the subjects that it delivers, for display.
        restore: converts a delivery to its message (the mailbox delivers copies).
        recreate: creates a deleted consumer again.
    """

    stream: str
    durable: str
    subjects: Sequence[str]
    ack_wait_s: float
    recreate: Callable[[], Awaitable[object]]
    restore: Callable[[Message], Message] | None = None
