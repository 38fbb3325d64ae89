"""Reads one device message: an envelope, or a raw payload on a device's own subject."""

from typing import Any, NamedTuple

import orjson

from functions.domain import strict_json
from functions.domain.topics import BadTopic, Topic, parse_topic, topic_from_subject
from runtime import Message

BAD_TOPIC_FORMAT = "BAD_TOPIC_FORMAT"
PAYLOAD_TOO_LARGE = "PAYLOAD_TOO_LARGE"
INVALID_JSON = "INVALID_JSON"
INVALID_PAYLOAD = "INVALID_PAYLOAD"
TENANT_MISMATCH = "TENANT_MISMATCH_TOPIC_VS_PAYLOAD"
UNSUPPORTED_VERSION = "unsupported_envelope_version"
"""A colon and the version, as the sender wrote it, follow."""

MAX_PAYLOAD_BYTES = 8192
FROM_LISTENER = "Nmqtt-Pub"
"""A header that nats-server adds to what its MQTT listener takes."""
# An escaped character takes six bytes of JSON for one of the payload.
_ESCAPED_BYTES = 6
_ENVELOPE_BYTES = 4096
_UNMAPPED = "tenant."
_VERSIONS = (None, 1, "1")
# A payload that a door has accepted is one level deeper inside of its envelope.
_ENVELOPE_DEPTH = strict_json.MAX_DEPTH + 1


class Envelope(NamedTuple):
    """A device's message.

    Attributes:
        topic: the topic, which names tenant, device and message type.
        username: the sender's name as the ingress (MQTT broker or gateway) knows it: an MQTT user
            or a certificate's common name; empty when unknown. Of a raw message without a token
            from nats-server's MQTT listener, the device of its subject: the listener has proved the
            device, and lets it publish on subjects of its own only.
        payload: the JSON object that the device sent.
        payload_bytes: the payload's size as the device sent it; without optional spaces when the
            payload is an object inside an envelope.
        ts: the time written by the device or the ingress, unparsed; None when absent.
        subject_tenant: the tenant in the subject, which NATS permissions can restrict.
        claimed_tenant: the tenant that the envelope names beside its topic; None when absent.
    """

    topic: Topic
    username: str
    payload: dict[str, Any]
    payload_bytes: int
    ts: Any
    subject_tenant: str
    claimed_tenant: Any

    @property
    def tenant_id(self) -> str:
        """The topic's tenant."""
        return self.topic.tenant_id

    @property
    def device_id(self) -> str:
        """The topic's device."""
        return self.topic.device_id

    @property
    def is_sessionless(self) -> bool:
        """Whether an ingress wrote the time: no session of nats-server's MQTT listener has one."""
        return self.ts is not None

    @property
    def msg_type(self) -> str:
        """The topic's message type."""
        return self.topic.msg_type


class BadEnvelope(ValueError):  # noqa: N818 - a verdict on a message, as Reject is
    """A message that names no device or holds no JSON object.

    Attributes:
        code: the reason code for the quarantine.
        detail: one sentence that repeats none of the content.
        topic: the topic as far as it could be read.
    """

    def __init__(self, code: str, detail: str, topic: Topic | str = "") -> None:
        self.code = code
        self.detail = detail
        self.topic = topic
        super().__init__(f"{code}: {detail}")


def read_envelope(message: Message, limit_bytes: int = MAX_PAYLOAD_BYTES) -> Envelope:
    """The device's message, from an envelope or from a raw payload on the device's subject.

    What is longer than any payload of `limit_bytes` can be is refused before it is parsed: the
    event loop does nothing else meanwhile.

    Raises:
        BadEnvelope: `BAD_TOPIC_FORMAT`, `PAYLOAD_TOO_LARGE`, `INVALID_JSON`, `INVALID_PAYLOAD`, or
            `unsupported_envelope_version:{version}`.
    """
    topic = topic_from_subject(message.subject)
    if topic is None:
        return _enveloped(message, limit_bytes)
    if isinstance(topic, BadTopic):
        raise BadEnvelope(BAD_TOPIC_FORMAT, topic.reason)
    _check_stream(topic, message.subject)
    data = message.data
    if len(data) > limit_bytes:
        raise _too_large(limit_bytes, topic)
    payload = _object(data, topic)
    is_proved = FROM_LISTENER in message.headers and payload.get("provision_token") is None
    username = f"{topic.tenant_id}/{topic.device_id}" if is_proved else ""
    return Envelope(topic, username, payload, len(data), None, topic.tenant_id, None)


def _enveloped(message: Message, limit_bytes: int) -> Envelope:
    data = message.data
    if len(data) > _ESCAPED_BYTES * limit_bytes + _ENVELOPE_BYTES:
        raise _too_large(limit_bytes, "")
    envelope = _object(data, "", _ENVELOPE_DEPTH)
    topic = parse_topic(envelope.get("topic"))
    if isinstance(topic, BadTopic):
        written = envelope.get("topic")
        raise BadEnvelope(
            BAD_TOPIC_FORMAT, topic.reason, written if isinstance(written, str) else ""
        )
    _check_stream(topic, message.subject)
    get = envelope.get
    if get("version") not in _VERSIONS:
        raise BadEnvelope(
            f"{UNSUPPORTED_VERSION}:{str(get('version'))[:16]}",
            "only version 1 is supported",
            topic,
        )
    if get("device_id", topic.device_id) != topic.device_id:
        raise BadEnvelope(BAD_TOPIC_FORMAT, "the envelope's device id is not its topic's", topic)
    payload = get("payload")
    if isinstance(payload, str):
        text = payload.encode()
        size_bytes = len(text)
        if size_bytes > limit_bytes:
            raise _too_large(limit_bytes, topic)
        payload = _object(text, topic)
    elif isinstance(payload, dict):
        size_bytes = len(orjson.dumps(payload))
    else:
        raise BadEnvelope(INVALID_PAYLOAD, "the payload is not a JSON object", topic)
    username = get("username")
    return Envelope(
        topic,
        username if isinstance(username, str) else "",
        payload,
        size_bytes,
        get("ts"),
        message.subject.partition(".")[2],
        get("tenant_id"),
    )


def _too_large(limit_bytes: int, topic: Topic | str) -> BadEnvelope:
    return BadEnvelope(PAYLOAD_TOO_LARGE, f"more than {limit_bytes} bytes", topic)


def _check_stream(topic: Topic, subject: str) -> None:
    if subject.startswith(topic.family):
        return
    if topic.is_downlink:
        raise BadEnvelope(
            BAD_TOPIC_FORMAT, "the topic is for messages to devices, not from devices", topic
        )
    if not subject.startswith(_UNMAPPED):
        raise BadEnvelope(BAD_TOPIC_FORMAT, "the topic belongs to another stream", topic)


def _object(
    data: bytes, topic: Topic | str, max_depth: int = strict_json.MAX_DEPTH
) -> dict[str, Any]:
    try:
        value = strict_json.loads(data, max_depth)
    except strict_json.BadJson as bad:
        raise BadEnvelope(INVALID_JSON, bad.reason, topic) from None
    if type(value) is not dict:
        raise BadEnvelope(INVALID_PAYLOAD, "the payload is not a JSON object", topic)
    return value


__all__ = [
    "BAD_TOPIC_FORMAT",
    "FROM_LISTENER",
    "INVALID_JSON",
    "INVALID_PAYLOAD",
    "MAX_PAYLOAD_BYTES",
    "PAYLOAD_TOO_LARGE",
    "TENANT_MISMATCH",
    "UNSUPPORTED_VERSION",
    "BadEnvelope",
    "Envelope",
    "read_envelope",
]
