"""What a path below `/ingest/v1/tenant/` stands for, and the methods that it takes. Pure."""

from collections.abc import Sequence
from typing import Literal

INGEST = "/ingest/v1/tenant/"
"""The beginning of the paths of devices."""
BATCH = b"/batch"
"""The end of the path of batches, after the message type."""

Resource = Literal["messages", "commands", "shadow"]

METHODS: dict[Resource, tuple[str, ...]] = {
    "messages": ("POST",),
    # No HEAD: a device that asks for its commands has got them, so the question has an effect.
    "commands": ("GET",),
    "shadow": ("GET", "HEAD"),
}

_BEFORE = 6
"""The levels of `/ingest/v1/tenant/{tenant_id}/device/{device_id}`."""


def resource_of(segments: Sequence[str]) -> Resource:
    """What a device's path stands for; `messages` for each that is not one of the others.

    Args:
        segments: the levels of the path, each decoded by itself.
    """
    match segments[_BEFORE:]:
        case ["commands"]:
            return "commands"
        case ["shadow"] | ["shadow", "name", _]:
            return "shadow"
    return "messages"


def is_batch(raw_path: bytes) -> bool:
    """Whether a device posts many messages there, and not one of a type that is called batch."""
    return raw_path.endswith(BATCH) and raw_path.count(b"/") > _BEFORE + 1


__all__ = ["BATCH", "INGEST", "METHODS", "Resource", "is_batch", "resource_of"]
