"""Reads and judges rows of telemetry from the past. Does no I/O.

A row passes the checks of a message, except those that prove the sender and charge its rate: the
sender is the tenant. Its time is its own, within bounds. Its sequence is a number made of its
content, below zero, where no stream's sequence is. So a row has one key, however often it is sent.
"""

import hashlib
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, StrictStr, ValidationError

from functions.domain.admission import Refused
from functions.domain.envelope import BAD_TOPIC_FORMAT, PAYLOAD_TOO_LARGE
from functions.domain.paging import as_time
from functions.domain.registry import DeviceKey, RegisteredDevice
from functions.domain.topics import BadTopic, Topic, parse_topic
from functions.ingest.checks import Limits, check_imported
from functions.ingest.plan import Row

_NS = 1_000_000_000


class Period(NamedTuple):
    """The times that an imported row may have, without the end."""

    from_at: datetime
    to_at: datetime


class ReadRow(NamedTuple):
    """A row whose form is right."""

    topic: Topic
    time: datetime
    site_id: str | None
    metrics: dict[str, Any]


class _Fields(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    device_id: StrictStr
    time: StrictStr
    metrics: dict[str, Any]
    site_id: StrictStr | None = None
    msg_type: StrictStr = "telemetry"


def read_row(tenant_id: str, content: object, period: Period) -> ReadRow | Refused:
    """The row in a line's content, or why it is none."""
    try:
        fields = _Fields.model_validate(content)
    except ValidationError as invalid:
        return Refused("ROW_INVALID", _explain(invalid))
    topic = parse_topic(f"tenant/{tenant_id}/device/{fields.device_id}/{fields.msg_type}")
    if isinstance(topic, BadTopic):
        return Refused(BAD_TOPIC_FORMAT, topic.reason)
    if topic.family != "telemetry":
        return Refused(BAD_TOPIC_FORMAT, "the message type is not one of telemetry")
    time = _read_time(fields.time, period)
    if isinstance(time, Refused):
        return time
    return ReadRow(topic, time, fields.site_id, fields.metrics)


def _read_time(text: str, period: Period) -> datetime | Refused:
    try:
        time = as_time(text)
    except ValueError:
        return Refused("TIME_INVALID", "the time is not RFC 3339 with a zone")
    if time < period.from_at:
        return Refused("TIME_TOO_OLD", "the row is older than telemetry may be imported or is kept")
    if time >= period.to_at:
        return Refused("TIME_IN_FUTURE", "the time is not past")
    return time


def _explain(invalid: ValidationError) -> str:
    """The first fault, without anything that the row contains."""
    fault = invalid.errors(include_url=False, include_context=False, include_input=False)[0]
    name = str(fault["loc"][0]) if fault["loc"] else ""
    if name not in _Fields.model_fields:
        return "the row has a field that is unknown" if name else "the row is not an object"
    return f"{name} is missing" if fault["type"] == "missing" else f"{name} has the wrong type"


def judge_row(
    read: ReadRow,
    devices: Mapping[DeviceKey, RegisteredDevice],
    limits: Limits,
    now: datetime,
) -> Row | Refused:
    """The row to write, or why it is refused."""
    topic = read.topic
    device = devices.get((topic.tenant_id, topic.device_id))
    verdict = check_imported(device, read.site_id, read.metrics, limits, int(now.timestamp() * _NS))
    if isinstance(verdict, Refused):
        return verdict
    try:
        text = orjson.dumps(verdict.metrics, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        text = b""
    if not text or not all(map(_is_finite, verdict.metrics.values())):
        return Refused("METRIC_VALUE_INVALID", "a metric's value is beyond what can be stored")
    if len(text) > limits.max_payload_bytes:
        return Refused(PAYLOAD_TOO_LARGE, f"more than {limits.max_payload_bytes} bytes")
    sequence = _sequence(topic.msg_type, text)
    return Row(read.time, *topic[:2], verdict.site_id, topic.msg_type, sequence, text.decode())


def _is_finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _sequence(msg_type: str, text: bytes) -> int:
    digest = hashlib.sha256(msg_type.encode() + b"\0" + text).digest()
    return -1 - (int.from_bytes(digest[:8]) >> 1)


__all__ = ["Period", "ReadRow", "judge_row", "read_row"]
