"""Runtime for functions on NATS: the names that a function module imports."""

from runtime.addresses import AddressPolicy, AllowedNetwork, parse_networks
from runtime.context import Context, PubAck, Publication, Reply, SystemPort
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
from runtime.nkeys import AccountKey, server_key
from runtime.registration import is_registration

__all__ = [
    "AccountKey",
    "AddressPolicy",
    "AllowedNetwork",
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
    "SystemPort",
    "TooLarge",
    "Unavailable",
    "Unsendable",
    "is_registration",
    "parse_networks",
    "server_key",
]
