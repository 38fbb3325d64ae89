"""Runtime for functions on NATS: the names that a function module imports."""

from runtime.context import Context, PubAck, Publication, Reply
from runtime.errors import (
    ConfigError,
    NoAnswer,
    Problem,
    PublishFailed,
    Reject,
    RequestFailed,
    Retry,
    TooLarge,
    Unavailable,
    Unsendable,
)
from runtime.message import Batch, Event, Message
from runtime.registration import is_registration

__all__ = [
    "Batch",
    "ConfigError",
    "Context",
    "Event",
    "Message",
    "NoAnswer",
    "Problem",
    "PubAck",
    "Publication",
    "PublishFailed",
    "Reject",
    "Reply",
    "RequestFailed",
    "Retry",
    "TooLarge",
    "Unavailable",
    "Unsendable",
    "is_registration",
]
