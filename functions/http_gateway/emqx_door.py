"""Where EMQX's HTTP sink posts what devices published by MQTT: `/bridge/v1/mqtt`.

EMQX repeats a request after 429, 503 and network errors and throws the message away after any
other status (source: emqx `emqx_bridge_http_connector.erl`, transform_result). So whatever might
go better next time is a 503, and a message that ingest will refuse is stored all the same:
refusing and keeping it is ingest's work.
"""

import base64
import binascii
import hashlib
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, NamedTuple

import orjson
from starlette.requests import Request
from starlette.responses import Response

from functions.domain.topics import BadTopic, Topic, is_tenant_id, parse_topic
from functions.http_gateway.bodies import read_body
from functions.http_gateway.keys import require_bridge
from functions.http_gateway.problems import ProblemError
from functions.http_gateway.settings import GatewaySettings
from functions.http_gateway.storing import Storage, trace_headers
from runtime import Context

UNMAPPED_SUBJECT = "tenant.unmapped"
"""Kept by stream `UNMAPPED`, which takes `tenant.>`."""

_MAX_ID_LENGTH = 128
_HEADROOM_BYTES = 2048


class Publish(NamedTuple):
    """One message that a device published, as EMQX tells it.

    Attributes:
        payload: the device's own bytes, or, where EMQX sent text, that text in UTF-8.
    """

    message_id: str
    topic: str
    username: str
    payload: bytes
    received_at: str


class EmqxDoor:
    """Stores every message that EMQX brings, whatever its topic and payload."""

    def __init__(self, ctx: Context, storage: Storage) -> None:
        self._ctx = ctx
        self._storage = storage
        self._settings: GatewaySettings = ctx.settings

    async def __call__(self, request: Request) -> Response:
        """Store one message."""
        require_bridge(request, self._settings.bridge_key)
        publish = read_publish(await self._read(request))
        try:
            subject, data = make_message(publish, limit_bytes=self._settings.max_publish_bytes)
            await self._storage.store(
                subject, data, msg_id=publish.message_id, headers=trace_headers(request)
            )
        except ProblemError:
            raise
        except Exception as failure:
            self._ctx.log.exception("A message of EMQX was not stored; it was told 503.")
            raise ProblemError(503, "NOT_STORED", "The message could not be stored.") from failure
        return Response(status_code=204)

    async def _read(self, request: Request) -> bytes:
        try:
            return await read_body(
                request,
                limit_bytes=self._settings.max_bridge_body_bytes,
                timeout_s=self._settings.read_timeout_s,
            )
        except ProblemError as problem:
            if problem.status != HTTPStatus.REQUEST_TIMEOUT:
                raise
            raise ProblemError(
                503, problem.code, problem.detail, headers=problem.headers
            ) from problem


def read_publish(body: bytes) -> Publish:
    """What EMQX says in one request: what its rule selects.

    Raises:
        ProblemError: 400, this is nothing that a rule with a topic could have sent.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise _garbage("the body is not JSON") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("topic"), str):
        raise _garbage("the body is no object with a topic")
    message_id = fields.get("id")
    if not _is_id(message_id):
        # Without EMQX's own id the body stands for the message: a repetition brings the same bytes.
        message_id = hashlib.sha256(body).hexdigest()
    username = fields.get("username")
    return Publish(
        message_id=f"emqx/{message_id}",
        topic=fields["topic"],
        username=username if isinstance(username, str) else "",
        payload=_payload(fields),
        received_at=_time(fields.get("publish_received_at")),
    )


def make_message(publish: Publish, *, limit_bytes: int) -> tuple[str, bytes]:
    """Subject and bytes to store, at most `limit_bytes` long.

    A text goes into an envelope as a string, exact to the byte. What is not UTF-8 goes out raw, on
    the subject that names its device; without such a device, into the envelope as base64.
    """
    topic = parse_topic(publish.topic)
    try:
        payload: dict[str, Any] = {"payload": publish.payload.decode()}
    except UnicodeDecodeError:
        if isinstance(topic, Topic) and len(publish.payload) <= limit_bytes:
            return raw_subject(topic), publish.payload
        payload = {"payload_base64": base64.b64encode(publish.payload).decode()}
    data = orjson.dumps(_fields(publish, topic) | payload)
    if len(data) > limit_bytes:
        data = orjson.dumps(_cut(publish, topic, limit_bytes))
    return _subject(publish.topic, topic), data


def raw_subject(topic: Topic) -> str:
    """The subject of a bare payload; a dot of the device id is `//`, as nats-server has it."""
    last = topic.msg_type.rpartition("/")[2] if topic.family != "telemetry" else topic.msg_type
    return f"{topic.stream_subject}.{topic.device_id.replace('.', '//')}.{last}"


def _fields(publish: Publish, topic: Topic | BadTopic) -> dict[str, Any]:
    fields: dict[str, Any] = {"topic": publish.topic}
    if isinstance(topic, Topic):
        fields |= topic._asdict()
    return fields | {"username": publish.username, "ts": publish.received_at}


def _cut(publish: Publish, topic: Topic | BadTopic, limit_bytes: int) -> dict[str, Any]:
    """Ingest refuses such a size anyhow; what NATS can hold of it shows a person what it was."""
    # An escaped control character takes six bytes of JSON for one of the payload.
    kept = publish.payload[: max(0, limit_bytes - _HEADROOM_BYTES) // 6]
    return _fields(
        publish._replace(topic=publish.topic[:256], username=publish.username[:64]), topic
    ) | {
        "payload": kept.decode(errors="replace"),
        "payload_cut_from_bytes": len(publish.payload),
    }


def _subject(text: str, topic: Topic | BadTopic) -> str:
    if isinstance(topic, Topic):
        return topic.stream_subject
    levels = text.split("/", 2)
    if levels[0] == "tenant" and len(levels) > 1 and is_tenant_id(levels[1]):
        return f"telemetry.{levels[1]}"
    return UNMAPPED_SUBJECT


def _payload(fields: dict[str, Any]) -> bytes:
    encoded = fields.get("payload_base64")
    if isinstance(encoded, str):
        try:
            return base64.b64decode(encoded, validate=True)
        except binascii.Error:
            return encoded.encode()
    payload = fields.get("payload")
    # A rule may have decoded the payload, json_decode(payload): then it comes as a value.
    return payload.encode() if isinstance(payload, str) else orjson.dumps(payload)


def _is_id(value: object) -> bool:
    return (
        isinstance(value, str)
        and 0 < len(value) <= _MAX_ID_LENGTH
        and value.isascii()
        and value.isprintable()
    )


def _time(milliseconds: object) -> str:
    if isinstance(milliseconds, int) and not isinstance(milliseconds, bool):
        try:
            return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat()
        except (ValueError, OverflowError, OSError):
            pass
    return datetime.now(UTC).isoformat()


def _garbage(reason: str) -> ProblemError:
    return ProblemError(400, "NOT_FROM_EMQX", f"This is no message of EMQX: {reason}.")
