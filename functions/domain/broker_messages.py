"""Messages that an MQTT broker has taken from devices, as the bridges to it store them.

Every message has a subject, whatever its topic and payload: function `ingest` quarantines what it
refuses, and nothing is dropped at a door that cannot tell the device.
"""

import base64
from typing import Any, NamedTuple

import orjson

from functions.domain.topics import BadTopic, Topic, is_tenant_id, parse_topic, raw_subject

UNMAPPED_SUBJECT = "tenant.unmapped"
"""A subject of stream `UNMAPPED`, which takes `tenant.>`."""

LEAST_LIMIT_BYTES = 4096
"""The least limit of `make_message`, with which every stream should be content."""
EXCEEDS_STREAM = "message size exceeds maximum allowed"
"""Why JetStream refuses a message above a stream's `max_msg_size`; it does not say how much above.
Source: nats-server `server/errors.json`, error 10054."""

_HEADROOM_BYTES = 2048


class Publish(NamedTuple):
    """One message that a device published, as its broker forwards it.

    Attributes:
        message_id: the same when the broker sends the message again.
        username: the device's name as the broker knows it; empty when unknown.
        payload: the device's own bytes, or the UTF-8 bytes of the text that the broker sent.
        received_at: when the broker or the bridge had it, as ISO 8601.
        cut_from_bytes: the payload's size as the device sent it, if it was cut already; 0 if not.
        mark: what the message has for the platform's mark (see `downlink_marks`); not stored.
    """

    message_id: str
    topic: str
    username: str
    payload: bytes
    received_at: str
    cut_from_bytes: int = 0
    mark: str = ""


def make_message(publish: Publish, *, limit_bytes: int) -> tuple[str, bytes]:
    """Subject and bytes to store, at most `limit_bytes` long, which is `LEAST_LIMIT_BYTES` or more.

    A UTF-8 payload becomes a string in the envelope, unchanged. Any other payload is stored raw on
    its device's subject, or as base64 in the envelope when the topic names no device.
    """
    topic = parse_topic(publish.topic)
    # Nothing is made of what would be cut afterwards.
    if publish.cut_from_bytes or len(publish.payload) > limit_bytes:
        return _subject(publish.topic, topic), orjson.dumps(_cut(publish, topic, limit_bytes))
    try:
        payload: dict[str, Any] = {"payload": publish.payload.decode()}
    except UnicodeDecodeError:
        if isinstance(topic, Topic):
            return raw_subject(topic), publish.payload
        payload = {"payload_base64": base64.b64encode(publish.payload).decode()}
    data = orjson.dumps(_fields(publish, topic) | payload)
    if len(data) > limit_bytes:
        data = orjson.dumps(_cut(publish, topic, limit_bytes))
    return _subject(publish.topic, topic), data


def _fields(publish: Publish, topic: Topic | BadTopic) -> dict[str, Any]:
    fields: dict[str, Any] = {"topic": publish.topic}
    if isinstance(topic, Topic):
        fields |= topic._asdict()
    return fields | {"username": publish.username, "ts": publish.received_at}


def _cut(publish: Publish, topic: Topic | BadTopic, limit_bytes: int) -> dict[str, Any]:
    """The message, cut to fit `limit_bytes`; ingest refuses the size and quarantines this part."""
    # An escaped control character takes six bytes of JSON for one of the payload.
    kept = publish.payload[: max(0, limit_bytes - _HEADROOM_BYTES) // 6]
    return _fields(
        publish._replace(topic=publish.topic[:256], username=publish.username[:64]), topic
    ) | {
        "payload": kept.decode(errors="replace"),
        "payload_cut_from_bytes": publish.cut_from_bytes or len(publish.payload),
    }


def _subject(text: str, topic: Topic | BadTopic) -> str:
    if isinstance(topic, Topic):
        return topic.stream_subject
    levels = text.split("/", 2)
    if levels[0] == "tenant" and len(levels) > 1 and is_tenant_id(levels[1]):
        return f"telemetry.{levels[1]}"
    return UNMAPPED_SUBJECT


__all__ = [
    "EXCEEDS_STREAM",
    "LEAST_LIMIT_BYTES",
    "UNMAPPED_SUBJECT",
    "Publish",
    "make_message",
]
