"""Device ingest over HTTP: `/ingest/v1/tenant/{tenant_id}/device/{device_id}/{msg_type}`."""

import hashlib
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime

import orjson
from starlette.requests import Request
from starlette.responses import Response

from functions.domain.topics import DOWNLINKS, BadTopic, Topic, parse_topic
from functions.http_gateway.bodies import BodyReader, read_object, require_json
from functions.http_gateway.device_admission import DeviceAdmission
from functions.http_gateway.paths import decode_segments
from functions.http_gateway.problems import ProblemError
from functions.http_gateway.settings import GatewaySettings
from functions.http_gateway.storing import Storage, trace_headers
from runtime import Context

PREFIX = ("ingest", "v1")

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_MAX_TOKEN_LENGTH = 512


class DeviceIngest:
    """Accepts one message of a device, and answers 202 once JetStream has stored it.

    The gateway stores nothing for a sender who does not prove to be the device. Function `ingest`
    later checks everything again, and quarantines the messages that it refuses.
    """

    def __init__(
        self,
        ctx: Context,
        storage: Storage,
        bodies: BodyReader,
        admission: DeviceAdmission | None,
    ) -> None:
        """`admission` checks tokens; None leaves that to function `ingest`."""
        self._bodies = bodies
        self._storage = storage
        self._admission = admission
        self._settings: GatewaySettings = ctx.settings

    async def __call__(self, request: Request) -> Response:
        """Store one message."""
        topic = _topic(request)
        require_json(request)
        key = _idempotency_key(request)
        body = await self._bodies.read(request, limit_bytes=self._settings.max_device_body_bytes)
        fields = read_object(body, code="INVALID_PAYLOAD")
        token = fields.get("provision_token", _header_token(request))
        if self._admission is not None:
            await self._admission.require(request, topic, token)
        payload = body if "provision_token" in fields else _with_token(body, fields, token)
        ack = await self._storage.store(
            topic.stream_subject,
            make_envelope(topic, payload),
            msg_id=_message_id(topic, key, payload),
            headers=trace_headers(request),
        )
        answer = {"stream": ack.stream, "sequence": ack.sequence, "duplicate": ack.duplicate}
        return Response(orjson.dumps(answer), 202, media_type="application/json")


def make_envelope(topic: Topic, payload: bytes) -> bytes:
    """The message to store. `payload` is JSON and is copied unchanged, so quarantine keeps it."""
    fields = {
        "topic": topic.text,
        "tenant_id": topic.tenant_id,
        "device_id": topic.device_id,
        "msg_type": topic.msg_type,
        "username": "",
        "ts": datetime.now(UTC).isoformat(),
    }
    return orjson.dumps(fields)[:-1] + b',"payload":' + payload + b"}"


def _topic(request: Request) -> Topic:
    segments = decode_segments(request.scope)
    topic = parse_topic("/".join(segments[len(PREFIX) :]))
    if any("/" in segment for segment in segments):
        topic = BadTopic("an id holds an encoded slash")
    elif isinstance(topic, Topic) and topic.msg_type in DOWNLINKS:
        topic = BadTopic("this message type is sent to devices, not by devices")
    if isinstance(topic, BadTopic):
        raise ProblemError(400, "BAD_TOPIC_FORMAT", f"Not a device's path: {topic.reason}.")
    return topic


def _header_token(request: Request) -> str | None:
    token = request.headers.get("x-provision-token")
    if token is not None and len(token) > _MAX_TOKEN_LENGTH:
        raise ProblemError(
            400, "INVALID_TOKEN", f"A token may have at most {_MAX_TOKEN_LENGTH} characters."
        )
    return token


def _with_token(body: bytes, fields: Mapping[str, object], token: object) -> bytes:
    if token is None:
        return body
    opened = body[body.index(b"{") + 1 :]
    comma = b"," if fields else b""
    return b'{"provision_token":' + orjson.dumps(token) + comma + opened


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise ProblemError(
            400, "INVALID_IDEMPOTENCY_KEY", "Idempotency-Key may hold 1 to 255 visible characters."
        )
    return key


def _message_id(topic: Topic, key: str | None, payload: bytes) -> str:
    """The id by which JetStream drops a repeat.

    The id holds the digest of what is stored, with the token: otherwise a device that used one key
    for two measurements, for example after it lost its counter, or that corrected its token, would
    get 202 for a message that JetStream dropped.
    """
    if key is None:
        return f"http/{uuid.uuid4().hex}"
    return f"http/{topic.text}/{hashlib.sha256(payload).hexdigest()[:32]}/{key}"
