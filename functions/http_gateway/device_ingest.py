"""Device ingest over HTTP: `/ingest/v1/tenant/{tenant_id}/device/{device_id}/{msg_type}`."""

from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from functions.http_gateway.bodies import BodyReader, check_object, parse_object, require_json_type
from functions.http_gateway.command_polls import CommandPolls, read_poll
from functions.http_gateway.content_coding import expand, is_gzip
from functions.http_gateway.device_admission import DeviceAdmission
from functions.http_gateway.device_batches import DeviceBatches
from functions.http_gateway.device_messages import (
    header_token,
    make_envelope,
    message_id,
    read_topic,
    with_token,
)
from functions.http_gateway.device_resources import is_batch
from functions.http_gateway.idempotency import idempotency_key
from functions.http_gateway.json_answers import send_json
from functions.http_gateway.requests import Request
from functions.http_gateway.settings import GatewaySettings
from functions.http_gateway.storing import Storage, trace_headers
from runtime import Context

_ACCEPTED = 202


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
        polls: CommandPolls,
    ) -> None:
        """`admission` checks tokens; None leaves that to function `ingest`."""
        self._polls = polls
        self._bodies = bodies
        self._storage = storage
        self._admission = admission
        self._settings: GatewaySettings = ctx.settings
        self._batches = DeviceBatches(ctx, storage, bodies, admission)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Store one message, and answer."""
        request = Request(scope, receive)
        if is_batch(scope["raw_path"]):
            await send_json(send, *await self._batches.store(request))
            return
        topic = read_topic(scope["raw_path"])
        require_json_type(request)
        key = idempotency_key(request)
        wants_commands = self._admission is not None and b"ttd=" in scope["query_string"]
        poll = read_poll(request) if wants_commands else None
        body = await self._read(request)
        fields = parse_object(body, code="INVALID_PAYLOAD")
        token = fields.get("provision_token", header_token(request))
        username = ""
        if self._admission is not None:
            username = await self._admission.require(request, topic, token)
            self._admission.rates.take(topic)
        # Only for a device that has proved itself: it can cost several times what parsing costs.
        check_object(body, fields)
        payload = body if "provision_token" in fields else with_token(body, fields, token)
        ack = await self._storage.store(
            topic.stream_subject,
            make_envelope(topic, payload, username),
            msg_id=message_id(topic, key, payload),
            headers=trace_headers(request),
        )
        answer: dict[str, Any] = {
            "stream": ack.stream,
            "sequence": ack.sequence,
            "duplicate": ack.duplicate,
        }
        if poll is not None:
            answer["commands"] = await self._polls.find_after(request, topic, poll)
        await send_json(send, _ACCEPTED, orjson.dumps(answer))

    async def _read(self, request: Request) -> bytes:
        limit_bytes = self._settings.max_device_body_bytes
        is_coded = is_gzip(request)
        body = await self._bodies.read(request, limit_bytes=limit_bytes)
        return expand(body, limit_bytes=limit_bytes) if is_coded else body
