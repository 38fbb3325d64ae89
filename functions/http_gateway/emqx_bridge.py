"""Bridge for EMQX: `/bridge/v1/mqtt` takes the MQTT messages that EMQX's HTTP sink posts.

EMQX repeats a request after 429, 503 and network errors and drops the message after any other
status (source: emqx `emqx_bridge_http_connector.erl`, transform_result). So every failure that may
pass gets 503. The bridge also stores a message that function `ingest` will refuse, since `ingest`
quarantines it. What the platform itself has sent to devices by EMQX comes here, too: it is counted
and not stored.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import orjson
from starlette.responses import Response

from functions.domain.broker_messages import LEAST_LIMIT_BYTES, Publish, make_message
from functions.domain.downlink_marks import DownlinkMarks, OwnMessages
from functions.http_gateway.bodies import BodyReader
from functions.http_gateway.client_addresses import ClientAddresses
from functions.http_gateway.keys import KeyCheck, require_bridge
from functions.http_gateway.problems import ProblemError
from functions.http_gateway.requests import Request
from functions.http_gateway.settings import GatewaySettings
from functions.http_gateway.storing import Storage, trace_headers
from runtime import Context

_MAX_ID_LENGTH = 128


class EmqxBridge:
    """Stores every message that EMQX posts and the platform has not sent, whatever it is."""

    def __init__(
        self, ctx: Context, storage: Storage, bodies: BodyReader, addresses: ClientAddresses
    ) -> None:
        self._bodies = bodies
        self._ctx = ctx
        self._storage = storage
        self._settings: GatewaySettings = ctx.settings
        self._own = OwnMessages(DownlinkMarks(self._settings.registration_key), ctx.log)
        self._key = KeyCheck(ctx, self._settings.bridge_key, "bridge", addresses)

    async def __call__(self, request: Request) -> Response:
        """Store one message."""
        require_bridge(request, self._key)
        publish = read_publish(await self._read(request))
        if self._own.recognise(publish.topic, publish.payload, publish.mark):
            return Response(status_code=204)
        try:
            await self._store(publish, trace_headers(request))
        except ProblemError:
            raise
        except Exception as failure:
            self._ctx.log.exception("A message of EMQX was not stored; EMQX was answered 503.")
            raise ProblemError(503, "NOT_STORED", "The message could not be stored.") from failure
        return Response(status_code=204)

    async def _store(self, publish: Publish, headers: Mapping[str, str]) -> None:
        """Store a message, or of one that is too large for NATS or its stream as much as may be."""
        try:
            await self._store_part(publish, self._settings.max_publish_bytes, headers)
        except ProblemError as problem:
            if problem.status != HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                raise
            # After a 413 EMQX would drop it.
            await self._store_part(publish, LEAST_LIMIT_BYTES, headers)

    async def _store_part(
        self, publish: Publish, limit_bytes: int, headers: Mapping[str, str]
    ) -> None:
        subject, data = make_message(publish, limit_bytes=limit_bytes)
        await self._storage.store(subject, data, msg_id=publish.message_id, headers=headers)

    async def _read(self, request: Request) -> bytes:
        try:
            return await self._bodies.read(
                request, limit_bytes=self._settings.max_bridge_body_bytes
            )
        except ProblemError as problem:
            if problem.status != HTTPStatus.REQUEST_TIMEOUT:
                raise
            raise ProblemError(
                503, problem.code, problem.detail, headers=problem.headers
            ) from problem


def read_publish(body: bytes) -> Publish:
    """The message in a request of EMQX: the fields that its rule selects.

    Raises:
        ProblemError: 400 when the body is not an object with a topic.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise _garbage("the body is not JSON") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("topic"), str):
        raise _garbage("the body is not an object with a topic")
    message_id = fields.get("id")
    if not _is_id(message_id):
        # Without EMQX's own id use the body's digest: a repeat has the same bytes.
        message_id = hashlib.sha256(body).hexdigest()
    username, mark = fields.get("username"), fields.get("sent_by")
    return Publish(
        message_id=f"emqx/{message_id}",
        topic=fields["topic"],
        username=username if isinstance(username, str) else "",
        payload=_payload(fields),
        received_at=_time(fields.get("publish_received_at")),
        mark=mark if isinstance(mark, str) else "",
    )


def _payload(fields: dict[str, Any]) -> bytes:
    encoded = fields.get("payload_base64")
    if isinstance(encoded, str):
        try:
            return base64.b64decode(encoded, validate=True)
        except binascii.Error:
            return encoded.encode()
    payload = fields.get("payload")
    # A rule with json_decode(payload) sends the payload as a JSON value.
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
    return ProblemError(400, "NOT_FROM_EMQX", f"This is not a message of EMQX: {reason}.")
