"""The document that receivers of a device's message get, as Standard Webhooks recommends."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from functions.domain.notices import is_notice_topic


def event_type(topic: str, msg_type: str) -> str:
    """The type of a message: `device.telemetry`, `notice.endpoint_disabled`."""
    family = "notice" if is_notice_topic(topic) else "device"
    return f"{family}.{msg_type.replace('/', '.') or 'message'}"


def event_body(kind: str, stored_at: datetime, data: Mapping[str, Any]) -> dict[str, Any]:
    """The document: type, time and data.

    Args:
        kind: the type.
        stored_at: when the message was stored.
        data: tenant, device, message type, topic and payload.
    """
    return {"type": kind, "timestamp": written(stored_at), "data": dict(data)}


def written(moment: datetime) -> str:
    """The time in UTC, in RFC 3339."""
    text = moment.isoformat()
    if not text.endswith("+00:00"):
        text = moment.astimezone(UTC).isoformat()
    return f"{text[:-6]}Z"


__all__ = ["event_body", "event_type", "written"]
