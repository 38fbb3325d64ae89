"""Keys of a function that have no effect with one of the bindings."""

from collections.abc import Mapping
from types import MappingProxyType

_OF_MESSAGES = frozenset(
    {
        *("batch", "fair_by", "max_in_flight", "max_in_flight_bytes", "ordered_by"),
        *("priority_by", "rate"),
    }
)
IDLE_KEYS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "consumer": frozenset(),
        "endpoint": _OF_MESSAGES | {"retry"},
        "schedule": _OF_MESSAGES,
        "service": _OF_MESSAGES | {"retry", "concurrency", "timeout"},
    }
)
"""By binding: the keys that have no effect on its function."""
